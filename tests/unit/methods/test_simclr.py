from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_method
from tests.unit.methods.batches import batch, build, gradients


@pytest.mark.parametrize("views", [2, 3])
def test_nt_xent_between_the_views(views: int) -> None:
    method, of_step = build(tiny_method("simclr")), batch(6, views)
    z = method.projector(method.backbone(of_step.images))
    logits = torch.cosine_similarity(z[:, None], z[None], dim=2) / 0.1
    terms = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        log_sum = torch.stack([logits[i, j] for j in others]).logsumexp(0)
        terms += [log_sum - logits[i, j] for j in others if j // views == i // views]
    expected = torch.stack(terms).mean()
    loss, metrics = method(of_step)
    torch.testing.assert_close(metrics["train/nce"], expected.detach(), rtol=1e-9, atol=0.0)
    ours, wanted = gradients(method, loss), gradients(method, expected)
    for key, grad in wanted.items():
        torch.testing.assert_close(ours[key], grad, rtol=1e-6, atol=1e-9)


def test_labels_reach_the_probe_only() -> None:
    method = build(tiny_method("simclr"))
    of_step, relabelled = batch(6, 2), batch(6, 2)
    relabelled.labels = (of_step.labels + 1) % 5
    relabelled.pair_labels = (of_step.pair_labels + 2) % 5
    one, other = method(of_step).metrics, method(relabelled).metrics
    assert torch.equal(one["train/nce"], other["train/nce"])
    assert not torch.equal(one["train/probe_loss"], other["train/probe_loss"])
