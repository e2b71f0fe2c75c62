from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from simlap import rng
from tests.tiny import tiny_method
from tests.unit.methods.batches import batch, build, gradients


@pytest.mark.parametrize("nce_weight", [1.0, 0.5])
def test_the_loss_anchor_by_anchor(nce_weight: float) -> None:
    """ArcGrad's cross-entropy, and InfoNCE with positives of class y or p in the subspace where both weight rows agree."""
    method, of_step = build(tiny_method("fuse", method__nce_weight=nce_weight, method__temperature=0.2)), batch(10)
    h = method.backbone(of_step.images)
    rows = method.head.classifier.weight
    z = F.normalize(method.head.projector(h), dim=1)
    cosines = z @ F.normalize(rows, dim=1).T
    head_loss = F.cross_entropy((math.pi - cosines.arccos()) / 0.2, of_step.labels)
    labels, pairs = of_step.labels.tolist(), of_step.pair_labels.tolist()
    terms = []
    for i, (y, p) in enumerate(zip(labels, pairs, strict=True)):
        gate = (rows[y] * rows[p] > 0).double().detach()
        logits = torch.cosine_similarity(gate * z[i], gate * z, dim=1) / 0.2
        negatives = sum(logits[j].exp() for j, label in enumerate(labels) if label not in (y, p))
        terms += [(negatives + logits[j].exp()).log() - logits[j] for j, label in enumerate(labels) if label in (y, p)]
    nce = torch.stack(terms).mean()
    loss, metrics = method.criterion(h, of_step)
    torch.testing.assert_close(loss, head_loss + nce_weight * nce, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(metrics["train/nce"], nce.detach())
    torch.testing.assert_close(metrics["train/probe_loss"], head_loss.detach())
    assert metrics["train/probe_top1"] == (cosines.argmax(1) == of_step.labels).float().mean()
    ours = torch.autograd.grad(loss, [h, rows], retain_graph=True)
    wanted = torch.autograd.grad(head_loss + nce_weight * nce, [h, rows])
    for found, grad in zip(ours, wanted, strict=True):
        torch.testing.assert_close(found, grad, rtol=1e-6, atol=1e-9)


def test_evaluation_looks_at_cosines() -> None:
    method, of_step = build(tiny_method("fuse")).eval(), batch()
    h = method.backbone(of_step.images)
    z = method.embed(h)
    assert z is not None
    torch.testing.assert_close(z.norm(dim=1), torch.ones(12, dtype=torch.float64))
    rows = F.normalize(method.head.classifier.weight, dim=1)
    torch.testing.assert_close(method.logits(h), z @ rows.T)


def test_gates_are_the_signs_of_the_classifier_as_it_stands() -> None:
    method, of_step = build(tiny_method("fuse")), batch()
    assert method.gates is not None
    assert not list(method.gates.parameters())
    assert not method.gates.state_dict()

    def expected() -> torch.Tensor:
        rows: torch.Tensor = method.head.classifier.weight
        return (rows[of_step.labels] * rows[of_step.pair_labels] > 0).double()

    torch.testing.assert_close(method.gates(of_step.labels, of_step.pair_labels).gates.double(), expected())
    method.head.classifier.weight.data[:, ::2].neg_()
    method.head.classifier.weight.data[0].neg_()
    torch.testing.assert_close(method.gates(of_step.labels, of_step.pair_labels).gates.double(), expected())


def test_learnt_gates_with_noise_and_penalty() -> None:
    gate = {"kind": "stochastic", "embedding_dim": 8, "hidden_dim": 16, "regulariser": 0.1}
    method, of_step = build(tiny_method("fuse", method__gate=gate, method__gate_penalty=0.5)), batch()
    noise = method.draw_noise(12, rng.generator(0))
    loss, metrics = method(of_step, noise)
    g, regulariser, *_ = method.filter(of_step.labels, of_step.pair_labels, noise)
    rest = 0.5 * (4 * g * (1 - g)).mean() + regulariser / 12
    expected = metrics["train/probe_loss"] + metrics["train/nce"] + rest.detach()
    torch.testing.assert_close(metrics["train/loss"], expected)
    assert gradients(method, loss).keys() == dict(method.named_parameters()).keys()
