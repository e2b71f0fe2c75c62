"""The subspace InfoNCE over the workers' keys, going round and gathered, and a plain float64 loop over the whole batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from simlap.losses import subspace_info_nce
from simlap.losses.arguments import Positives, Similarity
from simlap.losses.forms import circle, ring
from simlap.losses.forms.ring import ring_subspace_info_nce
from simlap.train.distributed import all_gather_with_gradient

DIM, CLASSES = 5, 4
SIMILARITIES: tuple[Similarity, ...] = ("cosine", "masked_dot")
Result = dict[str, Tensor]


class Case(NamedTuple):
    similarity: Similarity = "cosine"
    positives: Positives = "pair"
    seed: int = 0
    per_pair: bool = False
    without_self: bool = False
    temperature: float = 0.1
    pairs: str = "arbitrary"
    """Or `absent`: a class that no key has, so no positives; `all`: keys of y and p only, so no negatives."""
    sizes: str = "even"
    """Or `lopsided`: the last worker has one row; `empty`: it has none."""
    dtype: torch.dtype = torch.float64
    zeros: bool = False
    """A zero vector, and a zero gate."""


CASES = [
    *(
        Case(similarity, seed=seed, per_pair=bool(seed % 2), without_self=seed > 1)
        for similarity, seed in itertools.product(SIMILARITIES, range(4))
    ),
    *(Case(similarity, "either", 5, True, True, sizes="lopsided") for similarity in SIMILARITIES),
    *(Case(similarity, pairs=pairs) for similarity in SIMILARITIES for pairs in ("absent", "all")),
    *(Case(similarity, temperature=0.01, zeros=True, seed=6) for similarity in SIMILARITIES),
    *(Case(similarity, sizes="empty", per_pair=True) for similarity in SIMILARITIES),
    *(Case(similarity, dtype=torch.bfloat16, without_self=True) for similarity in SIMILARITIES),
]


class Inputs(NamedTuple):
    """Of the whole batch, in rank order."""

    z: Tensor  # [B, D]
    gates: Tensor  # [B, D]; [U, D] with gate_index
    labels: Tensor
    pair_labels: Tensor
    temperature: Tensor
    gate_index: Tensor | None
    self_index: Tensor | None
    sizes: list[int]


def inputs(case: Case, size: int, world_size: int) -> Inputs:
    generator = torch.Generator().manual_seed(case.seed)
    z = torch.randn(size, DIM, generator=generator, dtype=torch.float64).to(case.dtype)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    pair_labels = labels[torch.randperm(size, generator=generator)]
    if case.pairs == "absent":
        pair_labels = torch.full_like(labels, CLASSES)
    elif case.pairs == "all":
        labels, pair_labels = labels % 2, 1 - labels % 2
    gates, gate_index = torch.rand(size, DIM, generator=generator, dtype=torch.float64).to(case.dtype), None
    if case.zeros:
        z[1], gates[2] = 0.0, 0.0
    if case.per_pair:
        pairs = torch.stack([torch.minimum(labels, pair_labels), torch.maximum(labels, pair_labels)])
        distinct, gate_index = pairs.unique(dim=1, return_inverse=True)
        gates = gates[: distinct.shape[1]]
    sizes = [len(range(r, size, world_size)) for r in range(world_size)]
    if case.sizes != "even":
        last = 1 if case.sizes == "lopsided" else 0
        sizes = [len(range(r, size - last, world_size - 1)) for r in range(world_size - 1)] + [last]
    return Inputs(
        z,
        gates,
        labels,
        pair_labels,
        torch.tensor(case.temperature, dtype=torch.float64),
        gate_index,
        torch.arange(size) if case.without_self else None,
        sizes,
    )


def share(case: Case, size: int, rank: int, world_size: int, form: str) -> Result:
    """This worker's part of the loss by the `ring` or `gathered`, and its gradients; each worker weighs its own."""
    whole = inputs(case, size, world_size)
    begin = sum(whole.sizes[:rank])
    own = slice(begin, begin + whole.sizes[rank])
    z = whole.z[own].clone().requires_grad_()
    gates = (whole.gates if case.per_pair else whole.gates[own]).clone().requires_grad_()
    temperature = whole.temperature.clone().requires_grad_()
    options: dict[str, Any] = {
        "gate_index": None if whole.gate_index is None else whole.gate_index[own],
        "temperature": temperature,
        "similarity": case.similarity,
        "positives": case.positives,
        "self_index": None if whole.self_index is None else whole.self_index[own],
        "num_positives": float(size),
    }
    labels = (whole.labels[own], whole.pair_labels[own], whole.labels)
    if form == "ring":
        loss = ring_subspace_info_nce(z, gates, *labels, **options, sizes=whole.sizes)
    else:
        keys = all_gather_with_gradient(z, sizes=whole.sizes)
        loss = subspace_info_nce(z, keys, gates, *labels, **options)
    (loss * (1 + rank)).backward()
    assert z.grad is not None
    assert gates.grad is not None
    assert temperature.grad is not None
    return {"loss": loss.detach(), "z": z.grad, "gates": gates.grad, "temperature": temperature.grad}


def naive(case: Case, size: int, world_size: int) -> list[Result]:
    """What `share` is to give each worker: one process, one pair of anchor and key at a time, and autograd."""
    whole = inputs(case, size, world_size)
    z = whole.z.double().requires_grad_()
    gates = [whole.gates.double().clone().requires_grad_() for _ in whole.sizes]  # each worker's own
    temperature = [whole.temperature.clone().requires_grad_() for _ in whole.sizes]
    rank_of = [rank for rank, rows in enumerate(whole.sizes) for _ in range(rows)]
    losses = [0.0 * z.sum() for _ in whole.sizes]  # has gradients also where there are no positives
    for i, rank in enumerate(rank_of):
        gate = gates[rank][i if whole.gate_index is None else whole.gate_index[i]]
        logits = torch.stack([_similarity(gate, z[i], k, case.similarity) for k in z]) / temperature[rank]
        own, pair = whole.labels == whole.labels[i], whole.labels == whole.pair_labels[i]
        positive = own | pair if case.positives == "either" else pair.clone()
        if case.without_self:
            positive[i] = False
        for j in positive.nonzero().flatten().tolist():
            among = torch.cat([logits[j : j + 1], logits[~(own | pair)]])
            losses[rank] = losses[rank] + (among.logsumexp(0) - logits[j]) / size
    torch.stack([(1 + rank) * loss for rank, loss in enumerate(losses)]).sum().backward()
    z_grads = _grad(z).split(whole.sizes)
    results = []
    for rank, loss in enumerate(losses):
        own_rows = slice(sum(whole.sizes[:rank]), sum(whole.sizes[: rank + 1]))
        of_gates = _grad(gates[rank])
        results.append(
            {
                "loss": loss.detach(),
                "z": z_grads[rank],
                "gates": of_gates if case.per_pair else of_gates[own_rows],
                "temperature": _grad(temperature[rank]),
            }
        )
    return results


def _similarity(gate: Tensor, z: Tensor, key: Tensor, similarity: Similarity) -> Tensor:
    a, b = (gate * z, gate * key) if similarity == "cosine" else (z, key)
    if float(a.detach().norm()) == 0.0 or float(b.detach().norm()) == 0.0:
        return (gate * z * key).sum() * 0.0
    product = a @ b if similarity == "cosine" else (gate.square() * z) @ key
    cosine: Tensor = product / (a.norm() * b.norm())
    return cosine


def _grad(x: Tensor) -> Tensor:
    return torch.zeros_like(x) if x.grad is None else x.grad


class Held:
    """Counts the bytes of visiting keys that are alive at once: those at hand and those on their way."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.most = 0
        pass_on = circle.Circle.pass_on

        def counted(self_: circle.Circle, rows: Tensor, step: int, tag: int) -> circle.Passing:
            passing = pass_on(self_, rows, step, tag)
            if tag == circle.KEYS:
                self.most = max(self.most, len(rows) + len(passing.received))
            return passing

        patch.setattr(circle.Circle, "pass_on", counted)


def work(rank: int, world_size: int, size: int) -> dict[str, Any]:
    shares = {form: [share(case, size, rank, world_size, form) for case in CASES] for form in ("ring", "gathered")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring, "_BLOCK_ENTRIES", {"cpu": 1})
        patch.setattr(ring, "_BLOCK_COLUMNS", 3)  # several blocks in a share, the last one short
        held = Held(patch)
        blocks = [share(case, size, rank, world_size, "ring") for case in CASES]
    group = dist.new_group([0])  # of one
    alone = math.nan
    if isinstance(group, dist.ProcessGroup):
        whole = inputs(CASES[0], size, 1)
        labels = (whole.labels, whole.pair_labels, whole.labels)
        alone = float(ring_subspace_info_nce(whole.z, whole.gates, *labels, sizes=[size], group=group))
    return {**shares, "ring in blocks": blocks, "held": held.most, "alone": alone, "sizes": _refusal(size)}


def _refusal(size: int) -> str:
    whole = inputs(CASES[0], size, 1)
    labels: Sequence[Tensor] = (whole.labels, whole.pair_labels, whole.labels)
    try:
        ring_subspace_info_nce(whole.z, whole.gates, *labels, sizes=[size])
    except ValueError as error:
        return str(error)
    return ""
