"""Other datasets as a pretrained backbone sees them."""

from __future__ import annotations

import functools

from pydantic import TypeAdapter

from simlap.config.schema import Data, Experiment
from simlap.data.shared import shared_splits
from simlap.data.splits import Splits


def transfer_experiment(experiment: Experiment, data: Data) -> Experiment:
    """The experiment on another dataset: at the pretraining's image size and with its transform at evaluation.

    Augmentation (of fine-tuning), validation split, classes and fraction are the dataset's own.
    """
    own = experiment.data
    augment = data.augment.model_copy(update={"interpolation": own.augment.interpolation})
    stored = None if data.stored_size is None else max(data.stored_size, own.image_size)
    sizes = {"image_size": own.image_size, "eval_size": own.eval_size, "stored_size": stored}
    # the fields of a section are checked one by one; those that must agree are made to here
    return experiment.model_copy(update={"data": data.model_copy(update={**sizes, "augment": augment})})


def transfer_splits(experiment: Experiment, pretraining: Splits) -> Splits:
    """The decoded dataset of `transfer_experiment`, with the channels and the statistics of the pretraining.

    The last one is kept in the process: protocols, epochs and cells that ask for it in turn share it. Raises DataError.
    """
    return _load(experiment.data.model_dump_json(), pretraining.channels, pretraining.mean, pretraining.std)


@functools.lru_cache(maxsize=1)
def _load(data_json: str, channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Splits:
    data: Data = TypeAdapter(Data).validate_json(data_json)
    return shared_splits(data, channels=channels, mean=mean, std=std)
