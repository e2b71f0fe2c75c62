"""A batch that names its distinct pairs gives the same step as one that does not."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from simlap import rng
from simlap.data.batch import Pairs
from tests.tiny import tiny, tiny_method
from tests.unit.methods.batches import batch, build, gradients

MLP = {"embedding_dim": 8, "hidden_dim": 16}
EXPERIMENTS = {
    "open": tiny(method__gate={"kind": "open"}, method__gate_penalty=0.3),
    "sigmoid": tiny(method__gate={"kind": "sigmoid", **MLP}, method__gate_penalty=0.3, method__learn_temperature=True),
    "product": tiny(method__gate={"kind": "product", **MLP}, method__similarity="masked_dot", method__keep_self=False),
    "gumbel": tiny(method__gate={"kind": "gumbel", **MLP}, method__gate_penalty=0.3),
    "stochastic": tiny(method__gate={"kind": "stochastic", "regulariser": 0.1, **MLP}),
    "sign": tiny_method("fuse", method__gate_penalty=0.3),
    "supcon": tiny_method("supcon"),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_loss_metrics_gradients_and_state(name: str) -> None:
    method: Any = build(EXPERIMENTS[name])
    twin, of_step = copy.deepcopy(method), batch(40, views=2)
    pairs = Pairs.of(of_step.labels, of_step.pair_labels)
    noise = method.draw_noise(of_step.global_size, rng.generator(0))
    noise = None if noise is None else noise.double()
    found, expected = method(replace(of_step, pairs=pairs), noise), twin(of_step, noise)
    for key, value in expected.metrics.items():
        torch.testing.assert_close(found.metrics[key], value, rtol=1e-6, atol=1e-7, msg=key)
    ours, wanted = gradients(method, found.loss), gradients(twin, expected.loss)
    assert ours.keys() == wanted.keys()
    for key, grad in wanted.items():
        torch.testing.assert_close(ours[key], grad, rtol=1e-7, atol=1e-9, msg=key)
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(method.state_dict()[key], value, rtol=1e-9, atol=1e-11, msg=key)


@pytest.mark.parametrize("form", ["plain", "chunked"])
def test_the_form_changes_nothing(form: str) -> None:
    gate = {"kind": "sigmoid", **MLP}
    method, usual = build(tiny(method__gate=gate, train__loss=form)), build(tiny(method__gate=gate))
    assert method.loss_form == form
    of_step = batch(40)
    found, expected = method(of_step), usual(of_step)
    torch.testing.assert_close(found.loss, expected.loss)
    wanted = gradients(usual, expected.loss)
    for key, grad in gradients(method, found.loss).items():
        torch.testing.assert_close(grad, wanted[key], rtol=1e-7, atol=1e-9, msg=key)
