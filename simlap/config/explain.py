"""What pydantic found wrong, said in terms of the file: key, value, choices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from simlap.errors import ConfigError

_PLAIN_BRANCH = re.compile(r"^(constrained-\w+|int|str|float|bool|none|(list|dict|tuple|literal|function-\w+)\[.*)$")
"""How pydantic names the branch of a union that is no model."""


def explain(model: type[BaseModel], error: ValidationError, *, file: str | None, prefix: str) -> ConfigError:
    """The first thing that is wrong, and where there is more, its keys.

    Args:
        model: that was validated.
        error: what came of it.
        file: named in the error.
        prefix: of the keys.
    """
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
            return detail["msg"], context.get("choices", [])
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
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
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
