from __future__ import annotations

import pytest
import torch
from timm.data.mixup import mixup_target
from torch.nn import functional as F

from simlap import rng
from simlap.data.batch import Mix
from tests.tiny import tiny_method
from tests.unit.methods.batches import batch, build


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, 1.0, 0.3])
def test_cross_entropy_with_timms_targets(smoothing: float, weight: float | None) -> None:
    method, of_step = build(tiny_method("supervised", method__label_smoothing=smoothing)), batch()
    if weight is not None:
        of_step.mix = Mix(of_step.labels.flip(0), torch.full((12,), weight))
    h = method.backbone(of_step.images)
    targets = mixup_target(of_step.labels, 5, 1.0 if weight is None else weight, smoothing).double()
    logits = method.head(h)
    expected = F.cross_entropy(logits, targets)  # -sum of targets x log-softmax, mean over rows
    loss, metrics = method.criterion(h, of_step)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0.0)  # timm's targets are float32
    torch.testing.assert_close(metrics["train/probe_loss"], metrics["train/loss"])
    right = (logits.argmax(1) == of_step.labels).float()
    partner_right = (logits.argmax(1) == of_step.labels.flip(0)).float()
    share = 1.0 if weight is None else weight
    torch.testing.assert_close(metrics["train/probe_top1"], (share * right + (1 - share) * partner_right).mean())
    torch.testing.assert_close(method.logits(h), logits)


def test_dropout_of_the_features() -> None:
    method, of_step = build(tiny_method("supervised", method__dropout=0.25)), batch()
    noise = method.draw_noise(12, rng.generator(5))
    assert noise is not None
    assert noise.shape == (12, method.num_features)
    h = method.backbone(of_step.images)
    kept = (noise >= 0.25).double()
    assert 0 < kept.mean() < 1
    expected = F.cross_entropy(method.head(h * kept / 0.75), of_step.labels, label_smoothing=0.1)
    torch.testing.assert_close(method.criterion(h, of_step, noise).loss, expected)
    plain = F.cross_entropy(method.head(h), of_step.labels, label_smoothing=0.1)
    torch.testing.assert_close(method.eval().criterion(h, of_step).loss, plain)
    torch.testing.assert_close(method.logits(h), method.head(h))


def test_dropout_keeps_the_share_it_says() -> None:
    method = build(tiny_method("supervised", method__dropout=0.25))
    noise = method.draw_noise(4000, rng.generator(0))
    assert noise is not None
    assert float((noise >= 0.25).float().mean()) == pytest.approx(0.75, abs=0.015)  # six standard deviations
    assert build(tiny_method("supervised")).draw_noise(4, rng.generator(0)) is None


def test_dropout_without_its_noise_is_refused() -> None:
    method, of_step = build(tiny_method("supervised", method__dropout=0.25)), batch()
    with pytest.raises(ValueError, match=r"noise of shape \[12, 8\] .*not None"):
        method(of_step)
    with pytest.raises(ValueError, match=r"not \[3, 8\]"):
        method(of_step, torch.zeros(3, 8))
