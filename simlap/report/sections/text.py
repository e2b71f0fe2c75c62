"""Small pieces of HTML that several sections use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape


def class_of(name: str) -> str:
    """The attribute, or nothing."""
    return f' class="{name}"' if name else ""


def unbroken(html: str) -> str:
    """Numbers, their signs and units stay on one line."""
    html = re.sub(r"(?<=[(\[])-(?=\d)|(?<=, )-(?=[\d.]+\])", "−", html)
    return re.sub(r"(?<=\d) ± (?=\d)|(?<=\bp) (?==|&lt;)|(?<==|;) (?=\d)", lambda m: m[0].replace(" ", "\u00a0"), html)


def spoken(text: str) -> str:
    """A sentence as HTML; what it rests on, in brackets at its end, is set softer."""
    return re.sub(r" (\([^()]*\))\.$", r' <span class="basis">\1</span>.', unbroken(escape(text)))


def minus(text: str) -> str:
    """With real minus signs."""
    return text.replace("-", "−")


def duration(seconds: float) -> str:
    """`90 s`, `12 min`, `3.4 h`."""
    minutes = seconds / 60
    return f"{seconds:.3g} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def counted(noun: str, count: int) -> str:
    """The noun for so many."""
    return noun if count == 1 else f"{noun}s"


def capital(text: str) -> str:
    """The first letter only: names of metrics keep theirs."""
    return text[:1].upper() + text[1:]


def listed(names: Sequence[str], most: int = 3) -> str:
    """`a, b, c and 4 more`."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
