"""Datasets as uint8 tensors, keyed augmentation, pair labels, training and evaluation batches; check and conversion."""

from simlap.data.augment import Augmentation, Augmenter, build_augmenter, to_input
from simlap.data.batch import Batch, Mix
from simlap.data.check import DataReport, check_dataset
from simlap.data.convert import Converted, convert
from simlap.data.evaluation import eval_batches
from simlap.data.hierarchy import Hierarchy, semantic_distances, top_groups
from simlap.data.loader import TrainLoader, check_batch
from simlap.data.pairs import pair_labels
from simlap.data.splits import DataInfo, ImageSet, Splits, inspect_data, load_splits

__all__ = [
    "Augmentation",
    "Augmenter",
    "Batch",
    "Converted",
    "DataInfo",
    "DataReport",
    "Hierarchy",
    "ImageSet",
    "Mix",
    "Splits",
    "TrainLoader",
    "build_augmenter",
    "check_batch",
    "check_dataset",
    "convert",
    "eval_batches",
    "inspect_data",
    "load_splits",
    "pair_labels",
    "semantic_distances",
    "to_input",
    "top_groups",
]
