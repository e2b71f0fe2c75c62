"""Datasets as uint8 tensors, keyed augmentation, pair labels and the training batches."""

from simlap.data.augment import Augmenter, to_input
from simlap.data.loader import Batch, TrainLoader, check_batch, eval_batches
from simlap.data.pairs import pair_labels
from simlap.data.splits import DataInfo, ImageSet, Splits, inspect_data, load_splits

__all__ = [
    "Augmenter",
    "Batch",
    "DataInfo",
    "ImageSet",
    "Splits",
    "TrainLoader",
    "check_batch",
    "eval_batches",
    "inspect_data",
    "load_splits",
    "pair_labels",
    "to_input",
]
