"""Extracted features kept on storage, so that another protocol on the same checkpoint does not run the backbone again."""

from __future__ import annotations

import hashlib
import logging

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from simlap.config.identity import canonical_hash
from simlap.config.schema import Data
from simlap.data.splits import Splits
from simlap.storage import Storage

_VERSION = 1
_IRRELEVANT = {
    # where it lies; the fingerprint, given apart, says what it is
    "train", "test", "root", "download", "image_column", "label_column", "fingerprint",
    "augment", "repeated_augmentation", "sampling",  # of training batches only
    "streaming",  # how images are read does not change them
    "mean", "std",  # the statistics that are in use are given
}  # fmt: skip
_log = logging.getLogger("simlap.evaluate")


def features_id(data: Data, fingerprint: str, splits: Splits, part: str) -> str:
    """What a part's images are when they enter the backbone, as a hash.

    Args:
        data: its source, validation split, classes and sizes count.
        fingerprint: of the dataset.
        splits: how it is read: channels, statistics, and the transform at evaluation.
        part: `train`, `val` or `test`.
    """
    return canonical_hash(
        {
            "version": _VERSION,
            "data": data.model_dump(mode="json", exclude=_IRRELEVANT),
            "fingerprint": fingerprint,
            "part": part,
            "channels": splits.channels,
            "mean": [float(value) for value in splits.mean],
            "std": [float(value) for value in splits.std],
            "sizes": [splits.image_size, splits.eval_size],
            "interpolation": splits.interpolation,
        }
    )


class FeatureCache:
    """Features of one checkpoint, a file per set of images. A damaged file is as good as none, and a warning is logged.

    Args:
        storage: folder of all caches.
        checkpoint_sha256: of the checkpoint's model; its features have a folder of their own.
    """

    def __init__(self, storage: Storage, checkpoint_sha256: str) -> None:
        if not checkpoint_sha256:
            raise ValueError("a feature cache needs the checkpoint's checksum")
        self.storage = storage.child(checkpoint_sha256[:32])

    def get(self, name: str, labels: Tensor) -> Tensor | None:
        """[n, d] float32 on the CPU, or None where they are not there, damaged, or of other images.

        Args:
            name: from `features_id`.
            labels: int64 [n], of the images in their order.
        """
        path = f"{name}.safetensors"
        try:
            tensors = load(self.storage.read(path))
            features, stored, checksum = tensors["features"], tensors["labels"], tensors["sha256"]
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError, ValueError) as error:
            self._say_damaged(path, str(error))
            return None
        if not torch.equal(checksum, _checksum(features, stored)):
            self._say_damaged(path, "its checksum differs")
            return None
        if not torch.equal(stored, labels.cpu()) or len(features) != len(stored):
            self._say_damaged(path, "its labels are not those of the images")
            return None
        return features

    def put(self, name: str, features: Tensor, labels: Tensor) -> None:
        """Keep features. Arguments as in `get`."""
        features, labels = features.detach().float().cpu().contiguous(), labels.cpu().contiguous()
        tensors = {"features": features, "labels": labels, "sha256": _checksum(features, labels)}
        self.storage.write(f"{name}.safetensors", save(tensors))

    def _say_damaged(self, path: str, why: str) -> None:
        _log.warning("features %s cannot be used (%s); extracting them again", self.storage.describe(path), why)


def _checksum(features: Tensor, labels: Tensor) -> Tensor:
    digest = hashlib.sha256(repr((features.dtype, [*features.shape], [*labels.shape])).encode())
    digest.update(features.contiguous().numpy().tobytes())
    digest.update(labels.contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
