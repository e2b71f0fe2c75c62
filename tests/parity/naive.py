"""The losses as their equations are written, step by step, in float64 and in Python loops.

All give a float64 scalar, differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor


def subspace_info_nce(
    z: Tensor,
    keys: Tensor,
    gates: Tensor,
    labels: Tensor,
    pair_labels: Tensor,
    key_labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    similarity: str = "cosine",
    positives: str = "pair",
    self_index: Tensor | None = None,
    num_positives: float | None = None,
) -> Tensor:
    """docs/method.md, steps 3 to 5."""
    z, keys, gates = z.double(), keys.double(), gates.double()
    y, p, key_y = labels.tolist(), pair_labels.tolist(), key_labels.tolist()
    own = [-1] * len(y) if self_index is None else self_index.tolist()
    total = 0.0 * (z.sum() + keys.sum() + gates.sum())
    count = 0
    for i in range(len(y)):
        logits = [_similarity(z[i], keys[j], gates[i], similarity) / temperature for j in range(len(key_y))]
        wanted = {p[i], y[i]} if positives == "either" else {p[i]}
        chosen = [j for j in range(len(key_y)) if key_y[j] in wanted and j != own[i]]
        negatives = [j for j in range(len(key_y)) if key_y[j] not in (y[i], p[i])]
        for j in chosen:
            total = total + torch.logsumexp(torch.stack([logits[n] for n in (j, *negatives)]), 0) - logits[j]
        count += len(chosen)
    return _over(total, count, num_positives)


def nt_xent(
    z: Tensor,
    keys: Tensor,
    samples: Tensor,
    key_samples: Tensor,
    self_index: Tensor,
    *,
    temperature: float | Tensor,
    num_positives: float | None = None,
) -> Tensor:
    """Chen et al. 2020, equation 1, averaged over the positive pairs."""
    logits = _logits(z, keys, temperature)
    own = self_index.tolist()
    total, count = _zero(z, keys), 0
    for i in range(len(z)):
        for j in range(len(keys)):
            if key_samples[j] == samples[i] and j != own[i]:
                total = total - _log_share(logits[i], j, [k for k in range(len(keys)) if k != own[i]])
                count += 1
    return _over(total, count, num_positives)


def supcon(
    z: Tensor,
    keys: Tensor,
    pair_labels: Tensor,
    key_labels: Tensor,
    self_index: Tensor,
    *,
    temperature: float | Tensor,
    num_anchors: float | None = None,
) -> Tensor:
    """Khosla et al. 2020, equation 2, averaged over the anchors with positives."""
    logits = _logits(z, keys, temperature)
    own = self_index.tolist()
    total, count = _zero(z, keys), 0
    for i in range(len(z)):
        others = [k for k in range(len(keys)) if k != own[i]]
        positives = [j for j in others if key_labels[j] == pair_labels[i]]
        for j in positives:
            total = total - _log_share(logits[i], j, others) / len(positives)
        count += bool(positives)
    return _over(total, count, num_anchors)


def one_to_one(
    z: Tensor,
    keys: Tensor,
    pair_classes: Tensor,
    key_classes: Tensor,
    slots: Tensor,
    key_slots: Tensor,
    *,
    temperature: float | Tensor,
    num_terms: float | None = None,
) -> Tensor:
    """For each anchor and each slot but its own, the cross-entropy over the slot's keys."""
    logits = _logits(z, keys, temperature)
    total, count = _zero(z, keys), 0
    for i in range(len(z)):
        for slot in sorted(set(key_slots.tolist()) - {int(slots[i])}):
            members = [j for j in range(len(keys)) if key_slots[j] == slot]
            for j in members:
                if key_classes[j] == pair_classes[i]:
                    total = total - _log_share(logits[i], j, members)
                    count += 1
    return _over(total, count, num_terms)


def _logits(z: Tensor, keys: Tensor, temperature: float | Tensor) -> list[list[Tensor]]:
    units, unit_keys = [_over_norm(row) for row in z.double()], [_over_norm(row) for row in keys.double()]
    return [[unit @ key / temperature for key in unit_keys] for unit in units]


def _log_share(logits: list[Tensor], j: int, among: list[int]) -> Tensor:
    return logits[j] - torch.logsumexp(torch.stack([logits[k] for k in among]), 0)


def _zero(*inputs: Tensor) -> Tensor:
    return sum((0.0 * x.double().sum() for x in inputs), torch.zeros((), dtype=torch.float64))


def _over(total: Tensor, count: int, normaliser: float | None) -> Tensor:
    number = count if normaliser is None else normaliser
    return total / number if number else 0.0 * total


def _similarity(z: Tensor, key: Tensor, gate: Tensor, kind: str) -> Tensor:
    if kind == "masked_dot":
        return (gate**2 * _over_norm(z)) @ _over_norm(key)
    return _over_norm(gate * z) @ _over_norm(gate * key)


def _over_norm(x: Tensor) -> Tensor:
    """x / |x|; a zero vector gives zeros without gradient."""
    return x / x.norm() if bool((x != 0).any()) else torch.zeros_like(x)
