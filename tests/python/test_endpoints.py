"""becket.endpoints: an endpoint in parts."""

from __future__ import annotations

import pytest

from becket.endpoints import Endpoint, parse


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("tcp://127.0.0.1:80", Endpoint("", "tcp", {})),
        ("tls://a:1?cert=x.pem&reload=0", Endpoint("tls", "tcp", {"cert": "x.pem", "reload": "0"})),
        ("starttls://a:1?reuse_port=1", Endpoint("starttls", "tcp", {"reuse_port": "1"})),
        ("tls+unix:/a%3Fb?key=%61", Endpoint("tls", "unix", {"key": "a"})),
        ("proxied+unix:x", Endpoint("proxied", "unix", {})),
        ("stdio:", Endpoint("", "stdio", {})),
    ],
)
def test_parts(text: str, parts: Endpoint) -> None:
    assert parse(text) == parts


def test_what_the_parts_say() -> None:
    assert parse("tls+stdio:").is_single
    assert parse("process:cat").is_single
    assert not parse("tcp://a:1").is_single
    assert parse("tcp://a:1?reuse_port=1").is_each_ones
    assert not parse("tcp://a:1?reuse_port=0&x=reuse_port=1").is_each_ones


def test_what_cannot_be_parsed_is_marked() -> None:
    with pytest.raises(ValueError, match=r"(?s)tcp://a:1\?cert.*\^"):
        parse("tcp://a:1?cert")
    with pytest.raises(ValueError, match="NUL"):
        parse("tcp://a\0:1")
    with pytest.raises(TypeError, match="endpoint: a str is needed"):
        parse(7)  # type: ignore[arg-type]
