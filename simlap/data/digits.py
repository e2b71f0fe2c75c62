"""The 8x8 digits that ship with scikit-learn."""

from __future__ import annotations

import hashlib
import json
from functools import cache

import torch
from torch import Tensor

from simlap.config.schema import DigitsData
from simlap.data.resize import fit_square
from simlap.data.source import Part

NUM_TRAIN = 1400


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Images uint8 [1797, 1, 8, 8], the stored 0..16 stretched to 0..255, and labels int64 [1797]."""
    from sklearn.datasets import load_digits  # a second of import time, paid only by those who use it

    digits = load_digits()
    images = (torch.from_numpy(digits.images) * (255 / 16)).round().to(torch.uint8)
    return images[:, None], torch.from_numpy(digits.target).to(torch.int64)


class DigitsSource:
    """The first 1,400 images train, the last 397 test: other writers, as the set is ordered by writer."""

    class_names: tuple[str, ...] = tuple(str(digit) for digit in range(10))
    channels = 1

    def __init__(self, data: DigitsData) -> None:
        self._size = data.image_size
        facts = {"source": "digits", "train": f"[:{NUM_TRAIN}]", "shape": list(_digits()[0][:, 0].shape)}
        self.fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def labels(self, part: Part) -> Tensor:
        return _digits()[1][_rows(part)]

    def images(self, part: Part) -> Tensor:
        return fit_square(_digits()[0][_rows(part)], self._size)

    def where(self, part: Part) -> str:
        return f"digits ({part})"


def _rows(part: Part) -> slice:
    return slice(None, NUM_TRAIN) if part == "train" else slice(NUM_TRAIN, None)
