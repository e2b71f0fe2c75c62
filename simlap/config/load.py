"""From files and dotted overrides to a validated model, with errors that say file, key, value and choices."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from simlap.config import yaml
from simlap.config.schema import Experiment, ParquetData
from simlap.errors import ConfigError

M = TypeVar("M", bound=BaseModel)
_PLAIN_BRANCH = re.compile(r"^(constrained-\w+|int|str|float|bool|none|(list|dict|tuple|literal|function-\w+)\[.*)$")
"""How pydantic names the branch of a union that is no model."""


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, apply `a.b=value` overrides and validate. Local data paths become absolute. Raises ConfigError."""
    tree, _ = yaml.read_mapping(path)
    experiment = validate(Experiment, tree, file=str(path))
    return override(experiment, [parse_override(text) for text in overrides], file=str(path), where="command line")


def validate(model: type[M], tree: Mapping[str, Any], *, file: str | None = None, prefix: str = "") -> M:
    """Validate a tree of plain values strictly. Raises ConfigError for the first wrong key, listing how many more there are."""
    for key, value, reason in _unfit(tree, prefix):
        raise ConfigError(reason, file=file, key=key, value=value)
    try:
        return model.model_validate_json(json.dumps(tree, allow_nan=False))
    except ValidationError as error:
        raise _explain(model, error, file=file, prefix=prefix) from None


def parse_override(text: str) -> tuple[str, Any]:
    """`"optim.lr=1e-3"` -> `("optim.lr", 0.001)`; the value is read as YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError("an override is written a.b=value", file="command line", key=text)
    return path.strip(), yaml.parse(value, file=f"command line, {path.strip()}")


def override(
    experiment: Experiment, changes: Sequence[tuple[str, Any]], *, file: str | None = None, where: str = ""
) -> Experiment:
    """A copy with values at dotted paths replaced; local data paths become absolute.

    All changes are made before anything is validated, those higher up in the tree first, so their order matters only among
    changes to one place. A number in a path counts the items of a list from 0. A changed `kind` (or data `source`) replaces
    the whole node.

    Args:
        experiment: to be changed.
        changes: (path, value).
        file: named in errors.
        where: place of the changes in the file, named in errors.

    Raises:
        ConfigError: a path that is not in the config (naming the valid ones beside it), or a wrong value.
    """
    place = ", ".join(part for part in (file, where) if part) or None
    if changes:
        tree: dict[str, Any] = experiment.model_dump(mode="json")
        replaced: list[str] = []
        for path, value in sorted(changes, key=lambda change: _node(change[0]).count(".")):
            _set(tree, path, value, replaced, place)
        try:
            experiment = validate(Experiment, tree)
        except ConfigError as error:
            paths = [path for path, _ in changes]
            if not any(overlap(_node(path), error.key or "") for path in paths):
                # a value that was right by itself is made wrong by another
                place = f"{place}: {', '.join(paths)}" if place else ", ".join(paths)
            raise error.at(place) if place else error from None
    return _with_absolute_paths(experiment)


def overlap(path: str, other: str) -> bool:
    """Whether two dotted paths are equal or one lies below the other."""
    return f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}.")


def _node(path: str) -> str:
    """The place that a change at `path` replaces."""
    above, _, last = path.rpartition(".")
    return above if above and last in ("kind", "source") else path


def _set(tree: dict[str, Any], path: str, value: Any, replaced: list[str], place: str | None) -> None:
    """Set one value. Below `replaced` nodes (added to) any key may be new: only validation knows what belongs there."""
    keys = path.split(".")
    node: Any = tree
    parents: list[tuple[Any, str | int]] = []
    for depth, key in enumerate(keys):
        above = ".".join(keys[:depth])
        new = depth > 0 and any(f"{above}.".startswith(f"{known}.") for known in ("backbone.kwargs", *replaced))
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            parents.append((node, int(key)))
            node = node[int(key)]
        elif isinstance(node, dict) and (key in node or new):
            parents.append((node, key))
            node = node.setdefault(key, {})
        else:
            raise _no_such_key(path, key, above or "the experiment", node, place)
    parent, step = parents[-1]
    is_kind = _node(path) != path and not path.startswith("backbone.kwargs.")
    if is_kind and value != parent[step]:
        # the old kind's settings mean nothing to the new one
        above_parent, name = parents[-2]
        above_parent[name] = {step: value}
        replaced.append(_node(path))
    else:
        parent[step] = copy.deepcopy(value)
        replaced.append(path)


def _no_such_key(path: str, key: str, above: str, node: Any, place: str | None) -> ConfigError:
    choices: list[str] = []
    if isinstance(node, dict):
        choices, reason = list(node), ""
    elif isinstance(node, list):
        choices, reason = list(map(str, range(len(node)))), ", which is a list: name an item by its number"
    else:
        reason = ", which holds a plain value"
    return ConfigError(f"no key {key!r} in {above}{reason}", file=place, key=path, value=key, choices=choices)


def _with_absolute_paths(experiment: Experiment) -> Experiment:
    data = experiment.data
    if not isinstance(data, ParquetData):
        return experiment
    paths = {
        part: os.path.abspath(os.path.expanduser(path))
        for part, path in (("train", data.train), ("test", data.test))
        if "://" not in path
    }
    return experiment.model_copy(update={"data": data.model_copy(update=paths)})


def _unfit(value: Any, path: str) -> Iterator[tuple[str, Any, str]]:
    """Key, value and reason of what JSON cannot say."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _unfit(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _unfit(item, f"{path}.{i}" if path else str(i))
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield path, value, "must be a finite number"
    elif value is not None and not isinstance(value, str | int):
        yield path, value, "is no number, text, list or mapping"


def _explain(model: type[BaseModel], error: ValidationError, *, file: str | None, prefix: str) -> ConfigError:
    # an unknown key is the likely cause of a missing one, so it goes first
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    first = details[0]
    loc = _plain_loc(model, first)
    context: dict[str, Any] = first.get("ctx", {})
    below = context["key"] if first["type"] == "wrong_key" else ""
    key = ".".join(part for part in (prefix, *map(str, loc), below) if part)
    message, choices = _message(model, first, loc)
    if len(details) > 1:
        # the branches of a union that was not meant fail too, higher up on the same path
        rest = [_plain_loc(model, detail) for detail in details[1:]]
        others = sorted({".".join(map(str, other)) for other in rest if other != loc[: len(other)]})
        if others:
            message += f" [also wrong: {', '.join(others)}]"
    value = None if first["type"] in ("missing", "extra_forbidden") else first.get("input")
    if first["type"] == "union_tag_invalid":
        value = context["tag"]
    elif first["type"] == "wrong_key":
        value = context["value"]
    return ConfigError(message, file=file, key=key, value=value, choices=choices)


def _message(model: type[BaseModel], detail: ErrorDetails, loc: tuple[int | str, ...]) -> tuple[str, list[str]]:
    context: dict[str, Any] = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            owner = _model_at(model, detail["loc"][:-1])
            return "unknown key", sorted(owner.model_fields) if owner else []
        case "missing":
            return "is required", []
        case "union_tag_invalid":
            tags = [tag.strip().strip("'") for tag in str(context.get("expected_tags", "")).split(",")]
            return f"not a valid {str(context.get('discriminator')).strip(chr(39))}", tags
        case "union_tag_not_found":
            return f"needs the key {context.get('discriminator')}", []
        case "literal_error":
            return "not one of the valid values", [
                v.strip("'") for v in str(context["expected"]).replace(" or ", ", ").split(", ")
            ]
        case "value_error":
            return str(context.get("error", detail["msg"])), []
        case "wrong_key":
            return detail["msg"], []
        case _:
            return detail["msg"][0].lower() + detail["msg"][1:], []


def _plain_loc(model: type[BaseModel], detail: ErrorDetails) -> tuple[int | str, ...]:
    """The location as the file has it: pydantic adds the tag of a union and the name of its branch."""
    plain: list[int | str] = []
    current: Any = model
    for part in detail["loc"]:
        step = _step(current, part)
        if step is None and not isinstance(part, int) and _is_branch(current, part):
            continue
        plain.append(part)
        current = step
    tag = detail.get("ctx", {}).get("discriminator") if detail["type"] == "union_tag_invalid" else None
    if tag:
        plain.append(str(tag).strip("'"))
    return tuple(plain)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models(part)]


def _step(annotation: Any, part: int | str) -> Any:
    """The annotation one step further: a field of a model, or an item of a list or mapping."""
    if isinstance(part, int):
        return annotation
    for owner in _models(annotation):
        if part in owner.model_fields:
            field = owner.model_fields[part]
            return field.annotation if field.annotation is not None else object
    return None


def _is_branch(annotation: Any, part: str) -> bool:
    tags = {
        str(value)
        for owner in _models(annotation)
        for name in ("kind", "source")
        if name in owner.model_fields
        for value in get_args(owner.model_fields[name].annotation)
    }
    return part in tags or part in {owner.__name__ for owner in _models(annotation)} or bool(_PLAIN_BRANCH.match(part))


def _model_at(model: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel] | None:
    current: Any = model
    for part in loc:
        step = _step(current, part)
        if step is not None:
            current = step
            continue
        branches = [
            owner
            for owner in _models(current)
            if owner.__name__ == part
            or any(
                part in get_args(owner.model_fields[name].annotation)
                for name in ("kind", "source")
                if name in owner.model_fields
            )
        ]
        current = branches[0] if branches else current
    found = _models(current)
    return found[0] if found else None
