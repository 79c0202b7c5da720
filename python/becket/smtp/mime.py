"""What a message holds, for people to look at: its header, text, HTML and parts, as plain values.

Messages are hostile: nested without end, in charsets that nobody knows, with names of files that
are paths, or broken in ways that the email package raises exceptions for. Whatever they are, a View
comes of it. May take long: not for an event loop. Called by page.py.
"""

from __future__ import annotations

import base64
import contextlib
import email
import email.policy
import re
import unicodedata
from collections.abc import Iterator
from email.header import decode_header, make_header
from email.message import Message
from typing import Any, NamedTuple
from urllib.parse import unquote

MAX_PARTS = 500
MAX_NESTED = 100  # multiparts and messages, where the parser's work is too much as well:
MAX_WORK = 10_000_000  # it compares each line with the boundaries of all that is open
MAX_HEADERS = 500
MAX_HEADER = 8192  # a longer one is shown as it is, and cut
MAX_INLINE = 10 * 1024 * 1024  # bytes of images that are put into HTML
MAX_NAME = 120
IMAGES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
NO_CHARSETS = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined"})

CONTAINER = re.compile(rb"^content-type:\s*(?:multipart|message)/", re.I | re.M)
# In HTML these could load or run something, were it not for the page's policy; a link may make a
# browser look a name up, or connect, which no policy forbids.
ACTIVE = re.compile(r"<(/?)(?=(?:script|link|meta|base|i?frame|object|embed|portal)\b)", re.I)
DOCTYPE = re.compile(r"\s*<!doctype[^>]*>", re.I)


class Part(NamedTuple):
    """One leaf of the tree of a message."""

    path: str  # as IMAP counts: "1", "2.1"
    type: str  # what it says it is, in lower case: "text/plain"
    name: str  # of the file, safe to use as such; "": it has none
    attached: bool  # no part of the text
    cid: str  # by which HTML names it; "": it has none
    charset: str  # "": it has none
    data: bytes  # decoded from base64 and the like

    @property
    def text(self) -> str:
        """Its data, decoded somehow."""
        charset = self.charset.lower().replace("-", "_")
        if charset and charset not in NO_CHARSETS:
            with contextlib.suppress(LookupError, ValueError):
                return self.data.decode(charset)
        return self.data.decode("utf-8", "replace")


class View(NamedTuple):
    """A message to look at."""

    headers: list[tuple[str, str]]  # decoded, in order
    parts: list[Part]
    problem: str  # why there is no more to see than that; "": there is no more

    def header(self, name: str) -> str:
        """The first header of that name, decoded; "" when there is none."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")

    def part(self, path: str) -> Part | None:
        """The part of that path."""
        return next((part for part in self.parts if part.path == path), None)

    def body(self, kind: str) -> str | None:
        """The text of that type, such as "text/plain"; None when there is none."""
        found = [part.text for part in self.parts if part.type == kind and not part.attached]
        return "\n".join(found) if found else None

    @property
    def attachments(self) -> list[Part]:
        """What is not the text itself."""
        return [part for part in self.parts if part.attached]


def read(content: bytes) -> View:
    """Look at a message."""
    nested = len(CONTAINER.findall(content))
    if nested > MAX_NESTED and nested * content.count(b"\n") > MAX_WORK:
        return _unread(content, "nested too deeply")
    try:
        message = email.message_from_bytes(content, policy=email.policy.compat32)
        parts = list(_parts(message))
    except RecursionError:
        return _unread(content, "nested too deeply")
    except Exception as error:  # the email package's, of whatever kind
        return _unread(content, f"not to be parsed ({type(error).__name__})")
    problem = f"more than {MAX_PARTS} parts: see its source" if len(parts) > MAX_PARTS else ""
    return View(_headers(message), parts[:MAX_PARTS], problem)


def _unread(content: bytes, problem: str) -> View:
    header = re.split(rb"\r?\n\r?\n", content[:100_000], maxsplit=1)[0]
    lines = re.sub(rb"\r?\n(?=[ \t])", b"", header).splitlines()
    pairs = [line.partition(b":") for line in lines[:MAX_HEADERS]]
    headers = [(_clean_bytes(name), _clean_bytes(value).strip()) for name, _, value in pairs]
    return View(headers, [], f"{problem}: see its source")


# ---- Headers -------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Without what is no text: bytes that were none, control characters."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(c for c in text if c == "\t" or unicodedata.category(c) != "Cc")


def _clean_bytes(data: bytes) -> str:
    return clean(data[:MAX_HEADER].decode("utf-8", "replace"))


def _header(name: str, raw: str) -> tuple[str, str]:
    """One, decoded where the email package can do it."""
    value: Any = raw[:MAX_HEADER]
    if len(raw) <= MAX_HEADER:
        with contextlib.suppress(Exception):  # whatever its parser did not think of
            value = email.policy.default.header_fetch_parse(name, raw)
    return clean(name), _clean(str(value))


def _clean(value: str) -> str:
    try:
        return clean(value)
    except UnicodeError:  # halves of characters that are no bytes
        return clean(value.encode("utf-8", "replace").decode())


def _headers(message: Message) -> list[tuple[str, str]]:
    pairs = list(message.raw_items())[:MAX_HEADERS]
    return [_header(str(name), str(raw)) for name, raw in pairs]


# ---- Parts ---------------------------------------------------------------------------------------


def _parts(message: Message) -> Iterator[Part]:
    """The leaves, in order; one more than MAX_PARTS at most."""
    todo: list[tuple[str, Any]] = [("", message)]
    found = 0
    while todo and found <= MAX_PARTS:
        path, part = todo.pop()
        if part.is_multipart() and part.get_content_maintype() == "multipart":
            below = enumerate(part.get_payload()[: MAX_PARTS + 1], 1)
            todo += reversed([(f"{path}.{n}".lstrip("."), each) for n, each in below])
        else:
            found += 1
            yield _leaf(path or "1", part)


def _leaf(path: str, part: Any) -> Part:
    kind = _clean(part.get_content_type())
    name = file_name(_decoded(_ask(part.get_filename)))
    attached = name != "" or _ask(part.get_content_disposition) == "attachment"
    attached = attached or kind not in ("text/plain", "text/html")
    if attached and not name:
        name = f"part-{path}" + {"message/rfc822": ".eml"}.get(kind, "")
    cid = _clean(str(part.get("content-id", ""))).strip().strip("<>")
    return Part(path, kind, name, attached, cid, _ask(part.get_content_charset), _data(part))


def _ask(method: Any) -> str:
    """What is said in the header of a part; "" where that is broken."""
    try:
        return _clean(str(method() or ""))
    except Exception:  # the email package's, of whatever kind
        return ""


def _decoded(name: str) -> str:
    try:
        return str(make_header(decode_header(name)))  # RFC 2047, which many use here
    except Exception:  # as above; charsets that nobody knows
        return name


def _data(part: Any) -> bytes:
    if part.is_multipart():  # message/…, which is shown as a file
        try:
            return b"\r\n".join(each.as_bytes() for each in part.get_payload())
        except Exception:  # as above
            return b""
    data = part.get_payload(decode=True)
    return data if isinstance(data, bytes) else b""


def file_name(name: str) -> str:
    """A name of a file without folders, that is safe on every system; "" when none is left."""
    name = re.split(r"[/\\]", _clean(name))[-1]
    # Nothing that turns the direction of writing: "exe.txt" is to be seen as what it is.
    name = "".join("_" if c in '<>:"|?*%' else c for c in name if unicodedata.category(c) != "Cf")
    name = name.strip(" .\t")
    if len(name) > MAX_NAME:
        stem, dot, end = name.rpartition(".")
        end = dot + end if stem and len(end) < 12 else ""
        name = name[: MAX_NAME - len(end)] + end
    return name


# ---- HTML ----------------------------------------------------------------------------------------


def inert(view: View) -> str | None:
    """Its HTML with the images that came with it, for a frame that allows nothing else (page.py's
    policy for it does the work; that nothing active is left is a second line of defence)."""
    html = view.body("text/html")
    if html is None:
        return None
    html = _with_images(ACTIVE.sub(r"<\1x-", html), view.parts)
    doctype = DOCTYPE.match(html)
    end = doctype.end() if doctype else 0
    # A link that somebody follows opens a page of its own.
    return html[:end] + '<base target="_blank">' + html[end:]


def _with_images(html: str, parts: list[Part]) -> str:
    images = {part.cid: part for part in parts if part.cid and part.type in IMAGES}
    left = MAX_INLINE

    def image(found: re.Match[str]) -> str:
        nonlocal left
        part = images.get(unquote(found[1]))
        if part is None or len(part.data) > left:
            return found[0]
        left -= len(part.data)
        return f"data:{part.type};base64,{base64.b64encode(part.data).decode()}"

    return re.sub(r"cid:([^\s\"'<>)]+)", image, html)
