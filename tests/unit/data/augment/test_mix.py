from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import mixup as timm_mixup
from torch import Tensor

from simlap import rng
from simlap.config.schema import Augment
from simlap.data.augment import MixPlan, apply_mix, draw_mix


def _images(rows: int, size: int = 16) -> Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(0))


def _plan(step: int, *, size: int = 16, **fields: Any) -> MixPlan | None:
    """A batch of 8 rows."""
    return draw_mix(Augment(**fields), size, 8, rng.generator(0, "mix", 0, step))


@pytest.mark.parametrize("fields", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixed_images_and_weights_are_timms(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = _images(8), torch.arange(8)
    for step in range(20):
        plan = _plan(step, **fields)
        assert plan is not None
        if plan.box is not None:
            top, left, height, width = plan.box
            box = (top, top + height, left, left + width)
            monkeypatch.setattr(timm_mixup, "rand_bbox", lambda *_, box=box, **__: box)
        timm = timm_mixup.Mixup(1.0, 1.0, label_smoothing=0.0, num_classes=8)
        monkeypatch.setattr(timm, "_params_per_batch", lambda plan=plan: (plan.weight, plan.box is not None))
        theirs, target = timm(images.clone(), labels)
        before = images.clone()
        ours = apply_mix(images, images[plan.partners], plan)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        assert torch.equal(images, before)
        mixed = torch.eye(8) * plan.weight + torch.eye(8)[plan.partners] * (1 - plan.weight)
        torch.testing.assert_close(mixed, target, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.03, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("size", [7, 32])
def test_boxes_are_timms(weight: float, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from simlap.data.augment.mix import _box

    for y in range(size):
        centre = iter((y, size - 1 - y))
        monkeypatch.setattr(np.random, "randint", lambda *_, centre=centre, **__: next(centre))
        top, bottom, left, right = timm_mixup.rand_bbox((3, size, size), weight)
        side = int(size * (1 - weight) ** 0.5)
        assert _box(y, size - 1 - y, side, size) == (top, left, bottom - top, right - left)


@settings(max_examples=50, deadline=None)
@given(step=st.integers(0, 10**6), size=st.integers(1, 40), alpha=st.floats(0.05, 5.0))
def test_the_weight_is_the_area_outside_the_box(step: int, size: int, alpha: float) -> None:
    plan = _plan(step, size=size, cutmix=alpha)
    assert plan is not None
    assert plan.box is not None
    top, left, height, width = plan.box
    assert 0 <= top <= top + height <= size
    assert 0 <= left <= left + width <= size
    assert plan.weight == pytest.approx(1 - height * width / size**2)
    assert plan.partners.tolist() == list(range(7, -1, -1))


def test_rows_of_a_worker_are_mixed_as_in_the_whole_batch() -> None:
    images, plan = _images(8), _plan(3, mixup=0.8, cutmix=1.0)
    assert plan is not None
    whole = apply_mix(images, images[plan.partners], plan)
    rows = torch.arange(1, 8, 3)
    assert torch.equal(apply_mix(images[rows], images[plan.partners[rows]], plan), whole[rows])


def test_shares_follow_the_probabilities() -> None:
    plans = [_plan(step, mixup=0.8, cutmix=1.0, mix_probability=0.6) for step in range(1500)]
    mixed = [plan for plan in plans if plan is not None]
    assert abs(len(mixed) / 1500 - 0.6) < 0.05
    assert abs(sum(plan.box is not None for plan in mixed) / len(mixed) - 0.5) < 0.06
    weights = torch.tensor([plan.weight for plan in mixed if plan.box is None])
    assert abs(float(weights.mean()) - 0.5) < 0.05
    assert abs(float(weights.var()) - 1 / (4 * (2 * 0.8 + 1))) < 0.015  # of Beta(0.8, 0.8)


def test_off_is_no_plan() -> None:
    assert _plan(0) is None
    assert _plan(0, mixup=0.8, mix_probability=0.0) is None


def test_the_same_key_draws_the_same_plan() -> None:
    first, again, other = (_plan(step, mixup=0.8) for step in (1, 1, 2))
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.weight == again.weight != other.weight
