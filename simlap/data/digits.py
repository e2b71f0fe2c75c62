"""The 8x8 digits that ship with scikit-learn."""

from __future__ import annotations

import hashlib
import json
from functools import cache

import torch

from simlap.data.arrays import ArraySource
from simlap.data.source import ImageSet, Part

NUM_TRAIN = 1400


@cache
def _digits() -> ImageSet:
    """Images uint8 [1797, 1, 8, 8], the stored 0..16 stretched to 0..255, and labels int64 [1797]."""
    from sklearn.datasets import load_digits  # a second of import time, paid only by those who use it

    digits = load_digits()
    images = (torch.from_numpy(digits.images) * (255 / 16)).round().to(torch.uint8)
    return ImageSet(images[:, None], torch.from_numpy(digits.target).to(torch.int64))


def open_digits() -> ArraySource:
    """The first 1,400 images train, the last 397 test: other writers, as the set is ordered by writer."""
    whole = _digits()
    facts = {"source": "digits", "train": f"[:{NUM_TRAIN}]", "shape": list(whole.images[:, 0].shape)}
    return ArraySource(
        "digits",
        {
            "train": ImageSet(whole.images[:NUM_TRAIN], whole.labels[:NUM_TRAIN]),
            "test": ImageSet(whole.images[NUM_TRAIN:], whole.labels[NUM_TRAIN:]),
        },
        [str(digit) for digit in range(10)],
        where=_where,
        key="data.source",
        fingerprint=hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest(),
    )


def _where(part: Part) -> str:
    return f"digits ({part})"
