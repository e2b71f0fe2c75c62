"""What can be known to be wrong with an experiment before anything expensive starts."""

from __future__ import annotations

import functools

import torch

from simlap.config import Experiment
from simlap.config.schema import Backbone
from simlap.data.loader import check_batch
from simlap.data.splits import DataInfo, inspect_data
from simlap.errors import ConfigError
from simlap.nn.backbone import build_backbone


def check_experiment(experiment: Experiment, *, file: str, inspected: dict[str, DataInfo] | None = None) -> DataInfo:
    """Look at the data (footers and labels only), the batch and the backbone.

    Args:
        experiment: to be checked.
        file: named in errors.
        inspected: datasets already looked at, by their config; added to. Many arms share one.

    Raises:
        UserError: names the place, the value and what is wrong.
    """
    inspected = {} if inspected is None else inspected
    data = experiment.data.model_dump_json()
    if data not in inspected:
        inspected[data] = inspect_data(experiment.data)
    info = inspected[data]
    check_batch(info, experiment.data, experiment.train.batch_size)
    try:
        _check_backbone(experiment.backbone.model_dump_json(), experiment.data.image_size)
    except ConfigError as error:
        raise ConfigError(error.message, file=file, key=error.key, value=error.value, choices=error.choices) from error
    return info


@functools.lru_cache
def _check_backbone(config: str, image_size: int) -> None:
    with torch.device("meta"):  # shapes only, no memory and no time
        build_backbone(Backbone.model_validate_json(config), 3, image_size)
