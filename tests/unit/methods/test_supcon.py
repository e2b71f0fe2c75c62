from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from simlap.data.batch import Batch
from tests.tiny import tiny_method
from tests.unit.methods.batches import batch, build


def cosines(method: Any, of_step: Batch) -> Tensor:
    z = method.projector(method.backbone(of_step.images))
    return torch.cosine_similarity(z[:, None], z[None], dim=2) / 0.1


def pk(classes: list[int], images: int, views: int, pairs: list[int]) -> Batch:
    """Rows in [P, K, views] order; `pairs`: of each image."""
    of_step = batch(len(classes) * images, views, pair_labels=torch.tensor(pairs))
    of_step.labels = torch.tensor(classes).repeat_interleave(images * views)
    return of_step


@pytest.mark.parametrize("views", [1, 2])
def test_khosla(views: int) -> None:
    """L_out of Khosla et al. 2020, with the pair's class in place of the anchor's own."""
    method, of_step = build(tiny_method("khosla")), batch(8, views)
    logits = cosines(method, of_step)
    terms = []
    for i in range(len(logits)):
        others = [j for j in range(len(logits)) if j != i]
        positives = [j for j in others if of_step.labels[j] == of_step.pair_labels[i]]
        if positives:
            log_sum = torch.stack([logits[i, j] for j in others]).logsumexp(0)
            terms.append(torch.stack([log_sum - logits[i, j] for j in positives]).mean())
    expected = torch.stack(terms).mean().detach()
    torch.testing.assert_close(method(of_step).metrics["train/nce"], expected, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize(("images", "views"), [(3, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("absent", [False, True])
def test_one_to_one(images: int, views: int, absent: bool) -> None:
    """For every two slots, a classification among the P keys of the other slot."""
    classes = [3, 0, 2]
    pairs = [classes[(i // images + i) % 3] for i in range(3 * images)]
    if absent:
        pairs[0] = 4
    experiment = tiny_method(
        "one_to_one", data__sampling={"kind": "pk", "classes": 3, "images": images}, train__batch_size=3 * images,
        data__augment__views=views,
    )  # fmt: skip
    method, of_step = build(experiment), pk(classes, images, views, pairs)
    logits, slots = cosines(method, of_step), images * views
    terms = []
    for i in range(len(logits)):
        for slot in range(slots):
            target = int(of_step.pair_labels[i])
            if slot != i % slots and target in classes:
                of_slot = torch.stack([logits[i, c * slots + slot] for c in range(3)])
                terms.append(of_slot.logsumexp(0) - of_slot[classes.index(target)])
    expected = torch.stack(terms).mean().detach()
    torch.testing.assert_close(method(of_step).metrics["train/nce"], expected, rtol=1e-9, atol=0.0)
    assert isinstance(method.projector, torch.nn.Linear)


def test_an_anchor_of_its_own_class_may_leave_itself_out() -> None:
    of_step = batch()
    of_step.pair_labels = of_step.labels.clone()
    kept, dropped = (build(tiny_method("supcon", method__keep_self=keep)) for keep in (True, False))
    logits = cosines(dropped, of_step)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for i, y in enumerate(of_step.labels.tolist()):
        negatives = logits[i][of_step.labels != y]
        for j in range(len(logits)):
            if j != i and of_step.labels[j] == y:
                count += 1
                total = total + torch.cat([negatives, logits[i, j][None]]).logsumexp(0) - logits[i, j]
    found = dropped(of_step).metrics["train/nce"]
    torch.testing.assert_close(found, (total / count).detach(), rtol=1e-9, atol=0.0)
    assert kept(of_step).metrics["train/nce"] < found


def test_no_gates_to_look_at() -> None:
    method = build(tiny_method("supcon"))
    assert method.gates is None
    assert method.draw_noise(4, torch.Generator()) is None
