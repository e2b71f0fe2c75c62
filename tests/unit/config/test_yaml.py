"""YAML 1.2 as the files are written in it, and its inverse."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simlap.config import yaml
from simlap.errors import ConfigError


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


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise("abcdefghij")
)
"""Ten lines that stand for 9^10 words."""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LAUGHS, r"line 2, column 8: alias \*a: aliases are not allowed"),
        ("a: !!python/object/apply:os.system [ls]", r"line 1, column 4: tag .*os\.system: tags are not allowed"),
        ("[" * 100_000, "nested too deeply"),
        ("a: " + "9" * 5000, "not valid YAML: Exceeds the limit"),
        ("a: " + "x" * yaml.MAX_BYTES, "is larger than 1048576 bytes"),
        ("# " + "\u20ac" * (yaml.MAX_BYTES // 2), "is larger than 1048576 bytes"),
    ],
    ids=["laughs", "tag", "deep", "digits", "large", "large in bytes"],
)
def test_what_would_take_all_memory_or_run_is_refused(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        yaml.parse(text)
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=why) as error:
        yaml.read_mapping(file)
    assert error.value.file == str(file)


def test_no_more_of_a_file_is_read_than_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    with file.open("wb") as sparse:
        sparse.truncate(1 << 36)  # 64 GiB
    with pytest.raises(ConfigError, match="is larger than 1048576 bytes"):
        yaml.read_mapping(file)
