"""Addresses of machines."""

from __future__ import annotations

import ipaddress
import socket

LOOPBACK = "127.0.0.1"


def is_loopback(host: str) -> bool:
    """Whether a name or address is reached from this machine only. An unknown name is not."""
    return all(one.is_loopback for one in found) if (found := _addresses(host)) else False


def is_any(host: str) -> bool:
    """Whether it stands for all interfaces of this machine: `0.0.0.0` or `::`."""
    return any(one.is_unspecified for one in _addresses(host))


def in_url(host: str) -> str:
    """As an address has it: version 6 in brackets."""
    return f"[{host}]" if ":" in host else host


def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        found = socket.getaddrinfo(host.strip("[]"), None)
    except (OSError, UnicodeError):
        return []
    return [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in found]
