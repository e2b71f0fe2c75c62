"""YAML 1.2 as the files are written in it, and its inverse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simlap.config import yaml


def test_yaml_is_version_1_2() -> None:
    tree = yaml.parse("{a: 1e-3, b: on, c: off, d: yes, e: 010, f: 0o10, g: .5, h: ~, i: 1_000, j: true}")
    assert tree == {
        "a": 1e-3, "b": "on", "c": "off", "d": "yes", "e": 10, "f": 8, "g": 0.5, "h": None, "i": "1_000", "j": True,
    }  # fmt: skip


TRICKY = [
    "1e3", "1e-3", "0o17", "0x1F", "010", "1_000", "12:30", "on", "off", "yes", "no", "y", "true", "null", "~", "", "-", ".5",
    ".inf", ".nan", "2001-01-01", "<<", "=", "*a", "&a", "!a", "a: b", "# a", "a\nb", " a", "a ", "\t", "a\x85b", "\u2028",
    "a\r\nb", "\ufeff", "\x00", "---", "...", "?", "a" * 200,
]  # fmt: skip
"""Texts that YAML takes for something else, in one of its versions."""
TEXTS = st.text() | st.sampled_from(TRICKY) | st.from_regex(r"[-+]?[0-9_.:oxeE]{1,6}", fullmatch=True)


def same(one: object, other: object) -> bool:
    """Equal and of the same types all the way down: 1 is not 1.0, and neither is True."""
    return repr(one) == repr(other)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=10,
    )
)
def test_dump_and_parse_are_inverse(tree: object) -> None:
    assert same(yaml.parse(yaml.dump(tree)), tree)


@pytest.mark.parametrize("text", TRICKY)
def test_dump_keeps_texts_texts(text: str) -> None:
    for tree in (text, [text], {text: text}):
        assert same(yaml.parse(yaml.dump(tree)), tree)


def test_dump_writes_no_aliases() -> None:
    shared = [1, 2]
    assert yaml.parse(yaml.dump({"a": shared, "b": shared})) == {"a": [1, 2], "b": [1, 2]}
