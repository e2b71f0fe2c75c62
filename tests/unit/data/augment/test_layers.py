from __future__ import annotations

import pytest
import torch

from simlap import rng
from simlap.data.augment import layers
from simlap.data.augment.rand_augment import RandAugment, parse_rand_augment
from tests.unit.data.augment.images import counters, smooth

MEAN = (0.49, 0.31, 0.2)


@pytest.mark.parametrize("channels", [1, 3])
def test_maps_in_one_step_are_those_apart(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does, on the CPU."""
    augment = RandAugment(parse_rand_augment("rand-m9-n3-p0.8-mstd0.5"), MEAN[:channels], "bicubic")
    images, draws = smooth(60, channels), rng.uniform(4, *counters(60), augment.num_draws)
    expected = augment(images, draws)
    plan = layers._plan
    monkeypatch.setattr(layers, "_plan", lambda *arguments, one_map: plan(*arguments, one_map=not one_map))
    assert torch.equal(augment(images, draws), expected)


def test_rows_without_an_operation_stay() -> None:
    augment = RandAugment(parse_rand_augment("rand-m9-n2-p0.3"), MEAN, "bilinear")
    images, draws = smooth(80), rng.uniform(4, *counters(80), augment.num_draws)
    chosen = {int(row) for choices in augment.choose(draws) for choice in choices for row in choice.rows}
    stays = [row for row in range(80) if row not in chosen]
    assert 20 < len(stays) < 60
    assert torch.equal(augment(images, draws)[stays], images[stays])
