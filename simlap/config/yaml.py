"""YAML as version 1.2 reads it: `1e-3` is a number, `on`, `off`, `yes` and `no` are words, a key given twice is an error.

Aliases and tags are refused: no config needs them, and a few nested aliases can stand for gigabytes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer

from simlap.errors import ConfigError

MAX_BYTES = 1 << 20


class _Loader(Composer, yaml.CSafeLoader):
    """CSafeLoader with the YAML 1.2 core schema's scalars, and Python's composer, which can be told what to refuse."""

    def __init__(self, stream: str) -> None:
        yaml.CSafeLoader.__init__(self, stream)
        Composer.__init__(self)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        problem = None
        if isinstance(event, yaml.AliasEvent):
            problem = f"alias *{event.anchor}: aliases are not allowed, write the value out"
        elif getattr(event, "tag", None) is not None:
            problem = f"tag {event.tag}: tags are not allowed"
        if problem:
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            name = str(key_node.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {name!r} is given twice", key_node.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.CSafeDumper):
    """CSafeDumper that quotes what `_Loader` would take for something else than text, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), [char.strip("\0") for char in _first]
    )
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _text(dumper: yaml.CSafeDumper, text: str) -> yaml.Node:
    # line breaks of Unicode are folded away unless they are escaped
    style = '"' if any(char in text for char in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _text)


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = node.value
    return int(text, 8) if text.startswith("0o") else int(text, 16) if text.startswith("0x") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _int)


def parse(text: str, *, file: str | None = None) -> Any:
    """Parse YAML text. Raises ConfigError with file, line and reason."""
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise ConfigError(f"is larger than {MAX_BYTES} bytes, which no config is", file=file)
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader, and stricter
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"not valid YAML: {where}{getattr(error, 'problem', None) or error}", file=file) from error
    except RecursionError:
        raise ConfigError("not valid YAML: nested too deeply", file=file) from None
    except ValueError as error:  # a whole number of thousands of digits
        raise ConfigError(f"not valid YAML: {error}", file=file) from error


def read_mapping(path: str | Path) -> tuple[dict[str, Any], str]:
    """Read a YAML file that must hold a mapping. Returns it and the text."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)  # no more of a file that is too large
    except FileNotFoundError:
        siblings = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError("no such file", file=str(path), key="", choices=siblings) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", file=str(path)) from error
    tree = parse(text, file=str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"must hold a mapping of keys to values, not {type(tree).__name__}", file=str(path))
    return tree, text


def dump(tree: Any) -> str:
    """YAML text that `parse` reads back as the same tree."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
