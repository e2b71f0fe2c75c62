"""Which addresses are this machine's alone."""

from __future__ import annotations

import pytest

from simlap.net import in_url, is_any, is_loopback


@pytest.mark.parametrize(
    ("host", "loopback", "everywhere"),
    [
        ("127.0.0.1", True, False), ("127.8.8.8", True, False), ("localhost", True, False), ("::1", True, False),
        ("[::1]", True, False), ("192.0.2.7", False, False), ("2001:db8::1", False, False), ("0.0.0.0", False, True),
        ("::", False, True), ("no such name", False, False),
    ],
)  # fmt: skip
def test_which_is_which(host: str, loopback: bool, everywhere: bool) -> None:
    assert (is_loopback(host), is_any(host)) == (loopback, everywhere)


def test_version_6_is_in_brackets() -> None:
    assert [in_url(host) for host in ("a.net", "10.0.0.1", "::1")] == ["a.net", "10.0.0.1", "[::1]"]
