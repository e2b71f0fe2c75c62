from __future__ import annotations

from typing import Any

import pytest
import torch

from simlap import rng
from simlap.data.batch import Batch
from tests.tiny import tiny, tiny_method
from tests.unit.methods.batches import batch, build, gradients

MLP = {"embedding_dim": 8, "hidden_dim": 16}
GATES: list[dict[str, Any]] = [
    {"kind": "open"},
    {"kind": "sigmoid", **MLP},
    {"kind": "product", **MLP},
    {"kind": "gumbel", **MLP},
    {"kind": "gumbel", "noise": "gumbel", "hard": True, **MLP},
    {"kind": "stochastic", "regulariser": 0.01, **MLP},
]


def naive(method: Any, of_step: Batch, noise: torch.Tensor | None, similarity: str, keep_self: bool) -> torch.Tensor:
    """Steps 1 to 5 of the method, anchor by anchor."""
    z = method.projector(method.backbone(of_step.images))
    gates = method.filter(of_step.labels, of_step.pair_labels, noise).of_rows
    labels, pairs = of_step.labels.tolist(), of_step.pair_labels.tolist()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for i, (y, p) in enumerate(zip(labels, pairs, strict=True)):
        if similarity == "cosine":
            cosines = torch.cosine_similarity(gates[i] * z[i], gates[i] * z, dim=1)
        else:
            unit = z / z.norm(dim=1, keepdim=True)
            cosines = (gates[i] ** 2 * unit[i] * unit).sum(1)
        logits = cosines / 0.1
        negatives = [logits[j].exp() for j, label in enumerate(labels) if label not in (y, p)]
        for j, label in enumerate(labels):
            if label == p and (keep_self or j != i):
                count += 1
                total = total + (sum(negatives) + logits[j].exp()).log() - logits[j]
    return total / count


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: f"{gate['kind']}{'-hard' if 'hard' in gate else ''}")
@pytest.mark.parametrize(("similarity", "keep_self", "views"), [("cosine", True, 1), ("masked_dot", False, 2)])
def test_the_loss_is_that_of_the_paper(gate: dict[str, Any], similarity: str, keep_self: bool, views: int) -> None:
    experiment = tiny(method__gate=gate, method__similarity=similarity, method__keep_self=keep_self)
    method, of_step = build(experiment), batch(8, views)
    noise = method.draw_noise(of_step.global_size, rng.generator(1))
    assert (noise is None) == (gate["kind"] not in ("gumbel", "stochastic"))
    loss, metrics = method(of_step, noise)
    expected = naive(method, of_step, noise, similarity, keep_self)
    torch.testing.assert_close(metrics["train/nce"], expected.detach(), rtol=1e-9, atol=0.0)
    logits = method.probe(method.backbone(of_step.images).detach())
    whole = expected + torch.nn.functional.cross_entropy(logits, of_step.labels)
    if gate["kind"] == "stochastic":
        whole = whole + method.filter(of_step.labels, of_step.pair_labels, noise).regulariser / of_step.global_size
    torch.testing.assert_close(loss, whole, rtol=1e-9, atol=0.0)
    ours, wanted = gradients(method, loss), gradients(method, whole)
    largest = max(float(x.norm()) for x in wanted.values())
    for key, grad in wanted.items():
        assert float((ours[key] - grad).norm()) <= 1e-7 * largest, key


def test_the_gate_penalty_is_a_mean_over_gates() -> None:
    gate = {"kind": "sigmoid", **MLP}
    with_penalty, without = build(tiny(method__gate=gate, method__gate_penalty=0.5)), build(tiny(method__gate=gate))
    of_step = batch()
    g = without.filter(of_step.labels, of_step.pair_labels).gates
    expected = without(of_step).metrics["train/loss"] + 0.5 * (4 * g * (1 - g)).mean().detach()
    found = with_penalty(of_step)
    torch.testing.assert_close(found.metrics["train/loss"], expected)
    torch.testing.assert_close(found.metrics["train/nce"], without(of_step).metrics["train/nce"])
    reached = gradients(with_penalty, found.loss)["filter.mlp.5.bias"]
    assert not torch.allclose(reached, gradients(without, without(of_step).loss)["filter.mlp.5.bias"])


def test_gates_can_be_looked_at() -> None:
    method, of_step = build(tiny()).eval(), batch()
    assert method.gates is method.filter
    torch.testing.assert_close(
        method(of_step).metrics["gate/mean"].double(),
        method.gates(of_step.labels, of_step.pair_labels).gates.mean().detach(),
        rtol=1e-6,
        atol=0.0,
    )


def test_open_gates_and_identical_pairs_are_the_supervised_baseline() -> None:
    simlap, supcon = build(tiny(method__gate={"kind": "open"})), build(tiny_method("supcon"))
    of_step = batch()
    one, other = simlap(of_step), supcon(of_step)
    assert torch.equal(one.loss, other.loss)
    assert gradients(simlap, one.loss).keys() == gradients(supcon, other.loss).keys()
