"""From files and dotted overrides to a validated model, with errors that say file, key, value and choices."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from simlap.config import yaml
from simlap.config.explain import explain
from simlap.config.schema import Data, Experiment, FolderData, ParquetData, TorchvisionData, Transfer
from simlap.errors import ConfigError

M = TypeVar("M", bound=BaseModel)
_FREE = re.compile(r"(^|\.)((backbone|optim)\.kwargs|evaluate\.\d+\.hierarchy)\.")
"""Below these any key may be new."""


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, apply `a.b=value` overrides and validate. Local data paths become absolute. Raises ConfigError."""
    experiment = validate(Experiment, read_tree(path), file=str(path))
    return override(experiment, [parse_override(text) for text in overrides], file=str(path), where="command line")


def read_tree(path: str | Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """An experiment file's tree, with the tree of the file that it names as `pretrain` in its place.

    A stage's seed is that of the last one. A file that says nothing of the backbone takes its earlier stage's. Raises
    ConfigError.

    Args:
        path: of the file.
        above: files that lead here, none of which may be named again.
    """
    path = Path(path)
    tree, _ = yaml.read_mapping(path)
    stage = tree.get("pretrain")
    if isinstance(stage, str):
        chain = (*above, path.resolve())
        file = path.parent / Path(stage).expanduser()
        if file.resolve() in chain:
            raise ConfigError("a stage cannot start from itself", file=str(path), key="pretrain", value=stage)
        if not file.is_file():
            siblings = sorted(p.name for p in path.parent.glob("*.yaml") if p.resolve() not in chain)
            raise ConfigError(
                f"no such experiment file ({file})", file=str(path), key="pretrain", value=stage, choices=siblings
            )
        stage = tree["pretrain"] = read_tree(file, chain)
    if isinstance(stage, dict):
        if isinstance(stage.get("backbone"), dict):
            tree.setdefault(
                "backbone", {k: v for k, v in stage["backbone"].items() if k not in ("weights", "key_prefix")}
            )
        _follow_seed(tree)
    return tree


def _follow_seed(tree: dict[str, Any]) -> None:
    stage = tree.get("pretrain")
    if isinstance(stage, dict):
        stage["seed"] = tree.get("seed", 0)
        _follow_seed(stage)


def validate(model: type[M], tree: Mapping[str, Any], *, file: str | None = None, prefix: str = "") -> M:
    """Validate a tree of plain values strictly. Raises ConfigError for the first wrong key, listing how many more there are."""
    for key, value, reason in _unfit(tree, prefix):
        raise ConfigError(reason, file=file, key=key, value=value)
    try:
        return model.model_validate_json(json.dumps(tree, allow_nan=False))
    except ValidationError as error:
        raise explain(model, error, file=file, prefix=prefix) from None


def parse_override(text: str) -> tuple[str, Any]:
    """`"optim.lr=1e-3"` -> `("optim.lr", 0.001)`; the value is read as YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError("an override is written a.b=value", file="command line", key=text)
    return path.strip(), yaml.parse(value, file=f"command line, {path.strip()}")


def override(
    experiment: Experiment,
    changes: Sequence[tuple[str, Any]],
    *,
    file: str | None = None,
    where: str = "",
    folder: Path | None = None,
) -> Experiment:
    """A copy with values at dotted paths replaced; local data paths become absolute.

    All changes are made before anything is validated, those higher up in the tree first, so their order matters only among
    changes to one place. A number in a path counts the items of a list from 0. A changed `kind` (or data `source`) replaces
    the whole node. An experiment file named at `pretrain` is read.

    Args:
        experiment: to be changed.
        changes: (path, value).
        file: named in errors.
        where: place of the changes in the file, named in errors.
        folder: that experiment files are relative to (default: the current one).

    Raises:
        ConfigError: a path that is not in the config (naming the valid ones beside it), or a wrong value.
    """
    place = ", ".join(part for part in (file, where) if part) or None
    if changes:
        tree: dict[str, Any] = experiment.model_dump(mode="json")
        replaced: list[str] = []
        for path, value in sorted(changes, key=lambda change: _node(change[0]).count(".")):
            if path.split(".")[-1] == "pretrain" and isinstance(value, str):
                value = read_tree((folder or Path()) / Path(value).expanduser())
            _set(tree, path, value, replaced, place)
        if not any(path.endswith("pretrain.seed") for path, _ in changes):
            _follow_seed(tree)
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
        new = depth > 0 and (
            any(f"{above}.".startswith(f"{known}.") for known in replaced) or bool(_FREE.search(f"{above}."))
        )
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            parents.append((node, int(key)))
            node = node[int(key)]
        elif isinstance(node, dict) and (key in node or new):
            parents.append((node, key))
            node = node.setdefault(key, {})
        else:
            raise _no_such_key(path, key, above or "the experiment", node, place)
    parent, step = parents[-1]
    is_kind = _node(path) != path and not _FREE.search(path)
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
    changes: dict[str, Any] = {"data": _placed(experiment.data)}
    weights = experiment.backbone.weights
    if weights is not None:
        changes["backbone"] = experiment.backbone.model_copy(update={"weights": _absolute(weights)})
    if experiment.pretrain is not None:
        changes["pretrain"] = _with_absolute_paths(experiment.pretrain)
    if any(isinstance(evaluation, Transfer) for evaluation in experiment.evaluate):
        changes["evaluate"] = tuple(
            e.model_copy(update={"data": {name: _placed(data) for name, data in e.data.items()}})
            if isinstance(e, Transfer)
            else e
            for e in experiment.evaluate
        )
    return experiment.model_copy(update=changes)


def _placed(data: Data) -> Data:
    """A dataset with absolute local paths."""
    match data:
        case ParquetData() | FolderData():
            return data.model_copy(update={"train": _absolute(data.train), "test": _absolute(data.test)})
        case TorchvisionData():
            return data.model_copy(update={"root": _absolute(data.root)})
        case _:
            return data


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


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
