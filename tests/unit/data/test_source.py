from __future__ import annotations

import pytest
import torch

from simlap.data.source import ImageSet


def test_image_set_refuses_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="2 images but 3 labels"):
        ImageSet(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


def test_a_subset_keeps_the_order_asked_for() -> None:
    whole = ImageSet(torch.arange(4, dtype=torch.uint8)[:, None, None, None], torch.arange(4))
    some = whole.subset(torch.tensor([3, 0]))
    assert some.labels.tolist() == some.images.flatten().tolist() == [3, 0]
