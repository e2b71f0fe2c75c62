from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from simlap import rng
from simlap.methods import build_method
from simlap.train.world import World
from tests.tiny import METHODS, tiny, tiny_method
from tests.unit.methods.batches import batch, build, gradients

# sum and sum of magnitudes of the parts' initial tensors before there were other methods than SimLAP: runs of then go on
INITIAL = {
    "backbone": (27.922202130110236, 55.36795276260818),
    "projector": (49.89254564093426, 106.72999614197761),
    "filter": (53.68486987403594, 164.16618098248728),
    "probe": (-2.0157617582008243, 17.488755754195154),
}


def test_simlap_starts_as_ever() -> None:
    method = build_method(tiny(), num_classes=10, channels=1, world=World())
    state = method.state_dict()
    assert list(dict.fromkeys(name.split(".")[0] for name in state)) == list(INITIAL)
    for part, (total, size) in INITIAL.items():
        tensors = [x.double() for name, x in state.items() if name.startswith(part)]
        assert sum(float(x.sum()) for x in tensors) == pytest.approx(total, rel=1e-6)
        assert sum(float(x.abs().sum()) for x in tensors) == pytest.approx(size, rel=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_parts_that_two_methods_share_start_alike(name: str) -> None:
    simlap, other = build(tiny()).state_dict(), build(tiny_method(name)).state_dict()
    shared = ["backbone"] + ([] if name in ("supervised", "fuse") else ["probe"])
    shared += ["projector"] if name in ("supcon", "khosla", "simclr") else []
    for key, value in simlap.items():
        if key.split(".")[0] in shared:
            assert torch.equal(other[key], value), key
    another = build(tiny_method(name, seed=1)).state_dict()
    assert not torch.equal(another["backbone.0.weight"], other["backbone.0.weight"])


def views(name: str) -> int:
    return 2 if name == "simclr" else 1


@pytest.mark.parametrize("name", METHODS)
def test_what_every_method_gives(name: str) -> None:
    method = build(tiny_method(name))
    of_step = batch(views=views(name))
    noise = method.draw_noise(of_step.global_size, rng.generator(0))
    loss, metrics = method(of_step, noise)
    assert loss.ndim == 0
    assert metrics.keys() >= {"train/loss", "train/probe_loss", "train/probe_top1"}
    assert ("train/nce" in metrics) == (name != "supervised")
    assert ("gate/mean" in metrics) == (method.gates is not None) == (name in ("simlap", "fuse"))
    assert not any(value.requires_grad or value.ndim for value in metrics.values())
    torch.testing.assert_close(metrics["train/loss"], loss.detach())
    reached = gradients(method, loss)
    assert reached.keys() == dict(method.named_parameters()).keys()  # else a data-parallel wrapper would wait for them
    h = method.eval().backbone(of_step.images)
    assert method.logits(h).shape == (of_step.global_size, 5)
    z = method.embed(h)
    assert (z is None) == (name == "supervised")
    assert z is None or z.shape == (of_step.global_size, 16)


@pytest.mark.parametrize("name", METHODS)
def test_images_are_looked_at_by_the_backbone_only(name: str) -> None:
    """Gradient accumulation sends the images through the backbone in parts and calls the criterion once."""
    method = build(tiny_method(name))
    of_step = batch(views=views(name))
    noise = method.draw_noise(of_step.global_size, rng.generator(0))
    whole = gradients(method, method(of_step, noise).loss)
    h = method.backbone(of_step.images)
    parts = gradients(method, method.criterion(h, of_step.with_images(torch.empty(0)), noise).loss)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value)


def test_a_frozen_norm_stays_in_evaluation_mode() -> None:
    method = build(tiny(backbone__frozen_norm=True, backbone__weights="anywhere"))
    norms = [m for m in method.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert method.projector.training
    assert all(norm.training for norm in build(tiny()).backbone.modules() if isinstance(norm, nn.BatchNorm2d))


def test_own_columns_follow_the_offset() -> None:
    of_step = batch(4)
    of_step.offset = 9
    assert build(tiny()).own_columns(of_step).tolist() == [9, 10, 11, 12]


@pytest.mark.parametrize("changes", [{}, {"method__learn_temperature": True}])
def test_a_method_can_be_copied(changes: dict[str, Any]) -> None:
    """For the moving average of the weights; fuse's gates then come from the copy's own classifier."""
    of_step = batch()
    for method in (build(tiny(**changes)), build(tiny_method("fuse"))):
        twin = copy.deepcopy(method)
        for p in twin.parameters():
            p.data.neg_()
        twin.load_state_dict(method.state_dict())
        noise = method.draw_noise(of_step.global_size, rng.generator(0))
        assert torch.equal(method(of_step, noise).loss, twin(of_step, noise).loss)
