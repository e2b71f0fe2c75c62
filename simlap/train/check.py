"""What can be known to be wrong with an experiment before anything expensive starts."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simlap.config import Experiment, cell_id
from simlap.config.schema import Backbone, Data, Evaluation, FineTune, Gates, Optim, Transfer
from simlap.data.augment import build_augmenter
from simlap.data.hierarchy import check_hierarchy
from simlap.data.loader import check_batch
from simlap.data.splits import DataInfo, inspect_data
from simlap.errors import ConfigError, DataError, UserError
from simlap.evaluate.mantel import MAX_OBJECTS
from simlap.methods import check_loss, check_plugins, pair_kind
from simlap.nn.backbone import build_backbone
from simlap.train.optim import create_optimizer
from simlap.train.transfer import transfer_experiment
from simlap.train.weights import fingerprint, fitting, read_backbone


@dataclass(frozen=True)
class Stage:
    """One stage of an experiment, checked: a run of its own."""

    experiment: Experiment
    """As given; the datasets of `transfer` have their fingerprints."""
    info: DataInfo
    cell_id: str
    start: str | None
    """What its backbone starts from: the cell id of the stage before, `weights:` and a fingerprint, or None."""


def check_experiment(
    experiment: Experiment, *, file: str, inspected: dict[str, DataInfo] | None = None
) -> tuple[Stage, ...]:
    """Look at every stage's data (footers and labels only), augmentation, batch, backbone, weights, optimiser and protocols.

    Args:
        experiment: to be checked.
        file: named in errors.
        inspected: datasets already looked at, by their config; added to. Many arms share one.

    Returns:
        All stages in the order they run; the experiment itself last.

    Raises:
        UserError: names the file, the key (below `pretrain` for an earlier stage), the value and what is wrong.
    """
    inspected = {} if inspected is None else inspected
    stages: list[Stage] = []
    for depth, stage in zip(range(len(experiment.stages) - 1, -1, -1), experiment.stages, strict=True):
        try:
            stages.append(_check_stage(stage, inspected, stages[-1] if stages else None))
        except UserError as error:
            raise _below(error, "pretrain." * depth).at(file) from error
    return tuple(stages)


def _check_stage(experiment: Experiment, inspected: dict[str, DataInfo], before: Stage | None) -> Stage:
    data, backbone = experiment.data, experiment.backbone
    info = _inspected(data, inspected)
    check_batch(info, data, experiment.train.batch_size)
    _check_workers(experiment)
    check_loss(experiment)
    check_plugins(experiment, info.num_classes)
    if pair_kind(experiment) == "distinct" and info.num_classes < 2:
        raise DataError("needs at least two classes, the dataset has one", key="method.pairs", value="distinct")
    _check_augment(data, info.channels)
    _check_backbone(backbone.model_dump_json(), info.channels, data.image_size)
    _check_optimizer(experiment.optim.model_dump_json())
    start = None
    if before is not None:
        start = before.cell_id
        _check_start(experiment, info, before)
    elif backbone.weights is not None:
        tensors, mark = _weights(backbone.weights, backbone.key_prefix, _stamp(backbone.weights))
        fitting(_on_meta(backbone, info.channels, data.image_size), tensors, source=backbone.weights)
        start = f"weights:{mark}"
    protocols: list[Evaluation] = []
    for place, evaluation in enumerate(experiment.evaluate):
        if isinstance(evaluation, Transfer):
            evaluation = _check_transfer(experiment, evaluation, f"evaluate.{place}.data", info.channels, inspected)
        if isinstance(evaluation, Gates):
            _check_gates(evaluation, info, f"evaluate.{place}")
        protocols.append(evaluation)
    experiment = experiment.model_copy(update={"evaluate": tuple(protocols)})
    return Stage(experiment, info, cell_id(experiment, info.fingerprint, start), start)


def _below(error: UserError, prefix: str) -> UserError:
    """The same error in an earlier stage."""
    if not prefix or error.key is None:
        return error
    return type(error)(
        error.message, file=error.file, key=prefix + error.key, value=error.value, choices=error.choices
    )  # fmt: skip


def _inspected(data: Data, inspected: dict[str, DataInfo]) -> DataInfo:
    config = data.model_dump_json()
    if config not in inspected:
        inspected[config] = inspect_data(data)
    return inspected[config]


def _check_workers(experiment: Experiment) -> None:
    workers, batch_size = experiment.resources.workers, experiment.train.batch_size
    if workers > batch_size:
        raise ConfigError(
            f"more workers than rows of a batch (train.batch_size {batch_size})", key="resources.workers", value=workers
        )


def _check_augment(data: Data, channels: int) -> None:
    plain = (0.5,) * channels  # the data's own are known once they are decoded
    build_augmenter(data.augment, data.image_size, data.mean or plain, data.std or plain)


def _check_transfer(
    experiment: Experiment, evaluation: Transfer, key: str, channels: int, inspected: dict[str, DataInfo]
) -> Transfer:
    """The protocol with its datasets' fingerprints, by which they count in its id."""
    found: dict[str, Data] = {}
    augmented = any(isinstance(protocol, FineTune) for protocol in evaluation.protocols)
    for name, data in evaluation.data.items():
        try:
            found[name] = data.model_copy(update={"fingerprint": _inspected(data, inspected).fingerprint})
            if augmented:
                as_seen = transfer_experiment(experiment, data).data.model_copy(update={"mean": None, "std": None})
                _check_augment(as_seen, channels)
        except UserError as error:
            below = (error.key or "data").removeprefix("data").removeprefix(".")
            where = ".".join(part for part in (key, name, below) if part)
            raise type(error)(
                error.message, file=error.file, key=where, value=error.value, choices=error.choices
            ) from error  # fmt: skip
    return evaluation.model_copy(update={"data": found})


def _check_gates(evaluation: Gates, info: DataInfo, key: str) -> None:
    if not 2 <= info.num_classes <= MAX_OBJECTS:
        raise ConfigError(
            f"compares 2 to {MAX_OBJECTS} classes; the dataset has {info.num_classes}",
            key=f"{key}.kind",
            value=evaluation.kind,
        )
    if evaluation.hierarchy is not None:
        check_hierarchy(evaluation.hierarchy, info.class_names, key=f"{key}.hierarchy")


def _check_start(experiment: Experiment, info: DataInfo, before: Stage) -> None:
    """Whether what the stage before gives fits, by names and shapes."""
    earlier = before.experiment
    given = _on_meta(earlier.backbone, before.info.channels, earlier.data.image_size).state_dict()
    own = _on_meta(experiment.backbone, info.channels, experiment.data.image_size)
    fitting(own, given, key="pretrain", source=repr(earlier.name))


def _on_meta(backbone: Backbone, channels: int, image_size: int) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(backbone, channels, image_size)


@functools.lru_cache(maxsize=4)
def _weights(path: str, prefix: str, stamp: float) -> tuple[Mapping[str, Tensor], str]:
    """The tensors, without their values, and the fingerprint. `stamp`: changes with a local file."""
    tensors = read_backbone(path, prefix)
    return {name: torch.empty_like(value, device="meta") for name, value in tensors.items()}, fingerprint(tensors)


def _stamp(path: str) -> float:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:  # elsewhere than on this machine's disks, or missing: reading it will tell
        return 0.0


@functools.lru_cache
def _check_optimizer(config: str) -> None:
    """Construct the optimiser over a few numbers."""
    parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))]
    create_optimizer([{"params": [p], "weight_decay": 0.0} for p in parameters], Optim.model_validate_json(config))


@functools.lru_cache
def _check_backbone(config: str, channels: int, image_size: int) -> None:
    """Build the backbone and run it once, without memory and almost without time: shapes only."""
    backbone = Backbone.model_validate_json(config)
    size = f"{image_size}x{image_size}"
    # without arguments only the model itself can be wrong for these images
    where: dict[str, Any] = (
        {"key": "backbone.kwargs", "value": backbone.kwargs}
        if backbone.kwargs
        else {"key": "backbone.name", "value": backbone.name}
    )
    with torch.device("meta"), torch.no_grad():
        model = build_backbone(backbone, channels, image_size).eval()
        try:
            features = model(torch.empty(2, channels, image_size, image_size))
        except Exception as error:  # models answer images they cannot take with errors of every type
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
            raise ConfigError(
                f"{backbone.name} cannot process images of {size} pixels (data.image_size): {reason}", **where
            ) from error
    num_features: Any = model.num_features
    shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
    if shape != (2, num_features):
        raise ConfigError(
            f"{backbone.name} does not give one feature vector per image: two images of {size} pixels give {shape}, "
            f"not (2, {num_features})",
            **where,
        )
