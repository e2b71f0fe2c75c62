from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from simlap.config.schema import Augment
from simlap.data.augment import Drawn, augment_steps, build_augmenter, steps
from tests.unit.data.augment.images import smooth

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
AUTHORS: dict[str, Any] = {"interpolation": "bicubic", "rand_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25}
SMALL: dict[str, Any] = {"crop_scale": (0.3, 1.0), "brightness": 0.3, "contrast": 0.3, "erase": 0.1}


@pytest.mark.parametrize("images_together", [1, 24, 40, 1000])
@pytest.mark.parametrize("fields", [AUTHORS, SMALL, {"pipeline": "timm"}])
def test_steps_together_are_steps_alone(
    fields: dict[str, Any], images_together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    augmenter, images = build_augmenter(Augment(**fields), 16, MEAN, STD), smooth(57, size=16)
    monkeypatch.setitem(steps._TOGETHER, "cpu", images_together * images[0].nbytes)
    rows = torch.arange(57).split([12, 12, 12, 9, 12])  # partners of mixup may make a step longer or shorter
    drawn = [Drawn(images[part], part, part % 3, augmenter.draw(5, part, part % 3)) for part in rows]
    calls: list[int] = []

    class Counting:
        def draw(self, key: int, samples: Tensor, copies: Tensor) -> Tensor:
            return augmenter.draw(key, samples, copies)

        def __call__(
            self, images: Tensor, key: int, samples: Tensor, copies: Tensor, draws: Tensor | None = None
        ) -> Tensor:
            calls.append(len(images))
            return augmenter(images, key, samples, copies, draws)

    together = list(augment_steps(Counting(), 5, iter(drawn)))
    for ours, step in zip(together, drawn, strict=True):
        assert torch.equal(ours, augmenter(step.images, 5, step.samples, step.copies, step.draws))
    assert calls == {1: [12, 12, 12, 9, 12], 24: [24, 21, 12], 40: [36, 21], 1000: [57]}[images_together]


def test_no_step() -> None:
    augmenter = build_augmenter(Augment(**SMALL), 16, MEAN, STD)
    assert list(augment_steps(augmenter, 5, [])) == []
