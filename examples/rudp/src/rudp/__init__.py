"""rudp://host:port: a reliable stream of bytes over UDP, as a transport for becket.

Found by becket through an entry point when this package is installed; or added by hand:
``loop.add_scheme(rudp.Rudp())``. README.md says what is on the wire, and what it is good for.
"""

from rudp.connection import Settings
from rudp.lossy import Lossy
from rudp.scheme import Rudp

__all__ = ["Lossy", "Rudp", "Settings"]
