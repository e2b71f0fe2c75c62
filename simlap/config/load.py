"""From files and dotted overrides to a validated model, with errors that say file, key, value and choices."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from simlap.config import yaml
from simlap.config.schema import Experiment
from simlap.errors import ConfigError

M = TypeVar("M", bound=BaseModel)
_PLAIN_BRANCH = re.compile(r"^(constrained-\w+|int|str|float|bool|none|(list|dict|tuple|literal|function-\w+)\[.*)$")
"""How pydantic names the branch of a union that is no model."""


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, apply `a.b=value` overrides and validate. Raises ConfigError."""
    tree, _ = yaml.read_mapping(path)
    experiment = validate(Experiment, tree, file=str(path))
    return override(experiment, [parse_override(text) for text in overrides], file=str(path))


def validate(model: type[M], tree: Mapping[str, Any], *, file: str | None = None, prefix: str = "") -> M:
    """Validate a tree of plain values strictly. Raises ConfigError for the first wrong key, listing how many more there are."""
    try:
        text = json.dumps(tree)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"holds a value that is no number, word, list or mapping: {error}", file=file) from error
    try:
        return model.model_validate_json(text)
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
    """A copy with values at dotted paths replaced. A changed `kind` (or data `source`) replaces the whole node.

    Raises ConfigError: a path that is not in the config (naming the valid ones beside it), or a wrong value.
    """
    for path, value in changes:
        tree: dict[str, Any] = experiment.model_dump(mode="json")
        _set(tree, path, value, file=file, where=where)
        experiment = validate(Experiment, tree, file=f"{file}, {where}" if file and where else file)
    return experiment


def _set(tree: dict[str, Any], path: str, value: Any, *, file: str | None, where: str) -> None:
    keys = path.split(".")
    node: Any = tree
    parents: list[tuple[dict[str, Any], str]] = []
    for depth, key in enumerate(keys):
        free_form = keys[:depth] == ["backbone", "kwargs"]
        if not isinstance(node, dict) or (key not in node and not free_form):
            above = ".".join(keys[:depth])
            choices = list(node) if isinstance(node, dict) else []
            raise ConfigError(
                f"no key {key!r} in {above or 'the experiment'}" + ("" if choices else ", which holds a plain value"),
                file=file,
                key=f"{where}: {path}" if where else path,
                value=key,
                choices=choices,
            )
        parents.append((node, key))
        node = node.get(key)
    parent, key = parents[-1]
    if key in ("kind", "source") and value != parent[key] and len(parents) > 1:
        # the old kind's settings mean nothing to the new one
        grandparent, name = parents[-2]
        grandparent[name] = {key: value}
    else:
        parent[key] = copy.deepcopy(value)


def _explain(model: type[BaseModel], error: ValidationError, *, file: str | None, prefix: str) -> ConfigError:
    # an unknown key is the likely cause of a missing one, so it goes first
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    first = details[0]
    loc = _plain_loc(model, first)
    key = ".".join(part for part in (prefix, *map(str, loc)) if part)
    message, choices = _message(model, first, loc)
    if len(details) > 1:
        # the branches of a union that was not meant fail too, higher up on the same path
        rest = [_plain_loc(model, detail) for detail in details[1:]]
        others = sorted({".".join(map(str, other)) for other in rest if other != loc[: len(other)]})
        if others:
            message += f" [also wrong: {', '.join(others)}]"
    value = None if first["type"] in ("missing", "extra_forbidden") else first.get("input")
    if first["type"] == "union_tag_invalid":
        value = first["ctx"]["tag"]
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
