"""Fill the tables of docs/experiment-file.md and docs/study-file.md from the models' docstrings.

    python tools/reference.py [--check]

A page holds empty or outdated blocks

    <!-- keys: Optim -->
    <!-- end -->

and everything between the two lines is replaced by the keys of that model: type, default, meaning. With `--check` nothing is
written, and the exit code is 1 where a page is out of date.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from simlap.config import schema
from simlap.run import failures
from simlap.study import budget, reach, sampling, scheduling, search, spec

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"docs/experiment-file.md": schema.Experiment, "docs/study-file.md": spec.StudySpec}
"""Page -> the model whose keys, at any depth, it must show."""
_BLOCK = re.compile(r"^<!-- keys: (\w+) -->\n.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)
_WORDS: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
_PLURALS = {
    "whole number": "whole numbers",
    "number": "numbers",
    "text": "texts",
    "mapping": "mappings",
    "any value": "values",
}


def filled(text: str) -> str:
    """The page with its blocks renewed. Raises KeyError for a model that does not exist."""
    return _BLOCK.sub(lambda m: f"<!-- keys: {m[1]} -->\n{block(model_named(m[1]))}<!-- end -->", text)


def shown(text: str) -> set[str]:
    """Names of the models that a page has a block for."""
    return {match[1] for match in _BLOCK.finditer(text)}


def model_named(name: str) -> type[BaseModel]:
    modules = (schema, budget, failures, reach, sampling, scheduling, search, spec)
    found: type[BaseModel] = {key: value for module in modules for key, value in vars(module).items()}[name]
    return found


def block(model: type[BaseModel]) -> str:
    """The model's summary and the table of its keys."""
    lines = ["", _cell(inspect.getdoc(model) or ""), "", "| key | value | default | meaning |", "|---|---|---|---|"]
    keys = sorted(model.model_fields.items(), key=lambda item: item[0] not in ("kind", "source"))
    for name, info in keys:
        meaning = _meaning(model, name, info)
        lines.append(f"| `{name}` | {_value(info)} | {_default(info)} | {_cell(meaning)} |")
    return "\n".join([*lines, "", ""])


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside an annotation, not those inside them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not issubclass(annotation, schema.Plugin):  # what others bring along is documented by them
            yield annotation
    else:
        for part in get_args(annotation):
            yield from models(part)


def below(model: type[BaseModel], known: frozenset[type[BaseModel]] = frozenset()) -> set[type[BaseModel]]:
    """The model and all models under its keys; those in `known` are not gone into."""
    found = {model}
    for info in model.model_fields.values():
        for child in models(info.annotation):
            if child not in known | found:
                found |= below(child, known | found)
    return found


def _meaning(model: type[BaseModel], name: str, info: FieldInfo) -> str:
    """The docstring under the field, in the model or in the one it inherits from; else that of what the field holds."""
    for owner in model.__mro__:
        field = owner.model_fields.get(name) if issubclass(owner, BaseModel) else None
        if field is not None and field.description:
            return " ".join(field.description.split())
    inside = list(models(info.annotation))
    if len(inside) == 1:
        return inspect.getdoc(inside[0]) or ""
    return "Which one." if get_origin(info.annotation) is Literal else "One of the kinds below."


def _value(info: FieldInfo) -> str:
    return _type(info.annotation, info.metadata)


def _type(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0], args[1:])
    if origin is Literal:
        return " or ".join(_code(value) for value in args)
    if origin in (Union, types.UnionType):
        if all(isinstance(arg, type) and issubclass(arg, BaseModel) for arg in args):
            return "mapping, by " + _tag(args)
        return " or ".join(_type(arg) for arg in args if arg is not type(None))
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"list of {_plural(_type(args[0]))}"
        return f"list of {len(args)} {_plural(_type(args[0]))}"
    if origin is list:
        return f"list of {_plural(_type(args[0]))}"
    if origin is dict or annotation is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return _WORDS.get(annotation, "any value") + _bounds(metadata)


def _tag(kinds: tuple[type[BaseModel], ...]) -> str:
    key = "source" if "source" in kinds[0].model_fields else "kind"
    tags = [_code(tag) for kind in kinds for tag in get_args(kind.model_fields[key].annotation)]
    return f"`{key}`: " + ", ".join(tags)


def _bounds(metadata: Iterable[Any]) -> str:
    limits: list[str] = []
    for item in metadata:
        inner = item.metadata if isinstance(item, FieldInfo) else [item]
        for limit in inner:
            match limit:
                case annotated_types.Ge():
                    limits.append(f"≥ {limit.ge:g}")
                case annotated_types.Gt():
                    limits.append(f"> {limit.gt:g}")
                case annotated_types.Le():
                    limits.append(f"≤ {limit.le:g}")
                case annotated_types.Lt():
                    limits.append(f"< {limit.lt:g}")
    return " " + ", ".join(limits) if limits else ""


def _plural(words: str) -> str:
    first = next((word for word in _PLURALS if words.startswith(word)), None)
    return _PLURALS[first] + words.removeprefix(first) if first else words


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) and not value.model_dump(exclude_unset=True):
        return "see below"
    return "–" if value is None else _code(value)


def _code(value: Any) -> str:
    return f"`{_flow(value)}`"


def _flow(value: Any) -> str:
    """YAML as one writes it inside a line."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_unset=True)
    match value:
        case dict():
            return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_flow, value)) + "]"
        case str():
            return value
        case _:
            return json.dumps(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def main(arguments: list[str]) -> int:
    outdated = []
    for page in PAGES:
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            outdated.append(page)
            if "--check" not in arguments:
                path.write_text(new, encoding="utf-8")
    if "--check" not in arguments:
        return 0
    for page in outdated:
        print(f"{page} is out of date: run python tools/reference.py", file=sys.stderr)
    return 1 if outdated else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
