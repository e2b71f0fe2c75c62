"""What can be known to be wrong with an experiment before anything expensive starts."""

from __future__ import annotations

import functools
from typing import Any

import torch

from simlap.config import Experiment
from simlap.config.schema import Backbone
from simlap.data.loader import check_batch
from simlap.data.splits import DataInfo, inspect_data
from simlap.errors import ConfigError, UserError
from simlap.nn.backbone import build_backbone


def check_experiment(experiment: Experiment, *, file: str, inspected: dict[str, DataInfo] | None = None) -> DataInfo:
    """Look at the data (footers and labels only), the batch and the backbone.

    Args:
        experiment: to be checked.
        file: named in errors.
        inspected: datasets already looked at, by their config; added to. Many arms share one.

    Raises:
        UserError: names the file, the key, the value and what is wrong.
    """
    inspected = {} if inspected is None else inspected
    data = experiment.data.model_dump_json()
    try:
        if data not in inspected:
            inspected[data] = inspect_data(experiment.data)
        info = inspected[data]
        check_batch(info, experiment.data, experiment.train.batch_size)
        _check_workers(experiment)
        _check_backbone(experiment.backbone.model_dump_json(), info.channels, experiment.data.image_size)
    except UserError as error:
        raise error.at(file) from error
    return info


def _check_workers(experiment: Experiment) -> None:
    workers, batch_size = experiment.resources.workers, experiment.train.batch_size
    if workers > batch_size:
        raise ConfigError(
            f"more workers than rows of a batch (train.batch_size {batch_size})", key="resources.workers", value=workers
        )


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
