from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from simlap.data.batch import Batch
from tests.tiny import tiny_method
from tests.unit.methods.batches import batch, build, gradients

CONTRASTIVE = ("simlap", "supcon", "khosla", "one_to_one", "simclr")


def of_step_for(name: str) -> Batch:
    return batch(views=2 if name == "simclr" else 1)


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("probe", ["detached", "joint"])
def test_the_probe_is_a_linear_classifier_on_the_features(name: str, probe: str) -> None:
    changes = {"method__probe": probe}
    if name == "simlap":
        changes |= {"method__gate__kind": "open"}
    method, of_step = build(tiny_method(name, **changes)), of_step_for(name)
    h = method.backbone(of_step.images).detach().requires_grad_()
    loss, metrics = method.criterion(h, of_step)
    logits = method.probe(h)
    probe_loss = F.cross_entropy(logits, of_step.labels)
    torch.testing.assert_close(metrics["train/probe_loss"], probe_loss.detach())
    torch.testing.assert_close(metrics["train/loss"], metrics["train/nce"] + metrics["train/probe_loss"])
    top1 = (logits.argmax(1) == of_step.labels).float().mean()
    torch.testing.assert_close(metrics["train/probe_top1"], top1)
    (whole,) = torch.autograd.grad(loss, h, retain_graph=True)
    (of_probe,) = torch.autograd.grad(probe_loss, h, retain_graph=True)
    # what is left without the probe is the contrastive loss's
    nce = loss - F.cross_entropy(method.probe(h if probe == "joint" else h.detach()), of_step.labels)
    (of_nce,) = torch.autograd.grad(nce, h)
    torch.testing.assert_close(whole, of_nce + of_probe if probe == "joint" else of_nce)
    assert of_probe.abs().max() > 0


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_a_learnt_temperature_starts_at_the_fixed_one_and_moves(name: str) -> None:
    of_step = of_step_for(name)
    kind = {"method__gate__kind": "open"} if name == "simlap" else {}
    fixed = build(tiny_method(name, method__temperature=0.2, **kind))
    learnt = build(tiny_method(name, method__temperature=0.2, method__learn_temperature=True, **kind))
    loss, metrics = learnt(of_step)
    expected = fixed(of_step)
    torch.testing.assert_close(loss, expected.loss, rtol=1e-6, atol=0.0)  # log and exp of a float32
    assert metrics["train/temperature"] == pytest.approx(0.2, rel=1e-6)
    assert "train/temperature" not in expected.metrics
    assert learnt.log_scale.requires_grad
    slope = gradients(learnt, loss)["log_scale"]

    def at(log_scale: float) -> float:
        learnt.log_scale.data.fill_(log_scale)
        return float(learnt(of_step).metrics["train/nce"])

    middle, step = -math.log(0.2), 1e-4
    assert float(slope) == pytest.approx((at(middle + step) - at(middle - step)) / (2 * step), rel=1e-4)


def test_the_learnt_scale_stops_at_100_and_comes_back() -> None:
    method, of_step = build(tiny_method("supcon", method__learn_temperature=True)), batch()
    method.log_scale.data.fill_(7.0)
    loss, metrics = method(of_step)
    assert metrics["train/temperature"] == pytest.approx(0.01)
    assert float(gradients(method, loss)["log_scale"].abs()) > 0
    assert float(method.log_scale.detach()) == pytest.approx(math.log(100))


def test_no_positives_gives_no_contrastive_loss() -> None:
    """Every part keeps a gradient, of zeros, for the data-parallel wrapper."""
    of_step = batch(pair_labels=torch.full((12,), 4))
    of_step.labels.remainder_(4)  # class 4 is absent
    for name in ("simlap", "supcon", "khosla", "one_to_one"):
        method = build(tiny_method(name, **({"method__gate__kind": "sigmoid"} if name == "simlap" else {})))
        loss, metrics = method(of_step)
        assert metrics["train/nce"] == 0
        found = gradients(method, loss)
        for key, grad in found.items():
            assert grad.isfinite().all()
            assert key.startswith("probe") or not grad.any(), key
        assert found.keys() == dict(method.named_parameters()).keys()
