"""What every form of the subspace InfoNCE reads: the tensors, who is whose positive and negative, and numbers of unit size.

Shapes: B anchors, N keys, D embedding width, U gates, b anchors of one block.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from simlap.losses.unit import inverse_count, inverse_maximum, unit_norm

FAR_BELOW = 1e30
"""Taken off the logits of what is no negative: no exponential, and no NaN where an anchor has no negatives at all."""
_NEGLIGIBLE = -60.0
_DISTINCT_FROM = 2**15  # entries of a mask from which comparing each class once is faster than comparing each anchor's


class Problem(NamedTuple):
    """The checked arguments of `subspace_info_nce`, which explains them."""

    z: Tensor  # [B, D]
    keys: Tensor  # [N, D]
    gates: Tensor  # [U, D], one for each class pair; [B, D] without gate_index
    gate_index: Tensor | None  # [B], the anchors' gates
    labels: Tensor  # [B]
    pair_labels: Tensor  # [B]
    key_labels: Tensor  # [N]
    self_index: Tensor | None  # [B]
    temperature: float | Tensor
    weight: Tensor | None  # scalar, 1 / number of positives; 0 without any; None: of those that there are
    cosine: bool
    either: bool

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        wide = torch.float64 in (self.z.dtype, self.keys.dtype, self.gates.dtype)
        return torch.float64 if wide else torch.float32

    def normaliser(self, positive: Tensor | None = None) -> Tensor:
        """`weight`, a float64 scalar; where it is to be found, from the mask [B, N] of `masks` if that is there."""
        if self.weight is not None:
            return self.weight
        if positive is not None:
            return inverse_count(positive.sum(dtype=torch.float64), positive.device)
        count = count_positives(self.labels, self.pair_labels, self.key_labels, self.self_index, self.either)
        return inverse_count(count, self.z.device)

    @property
    def learns(self) -> bool:
        """Whether gradients are wanted."""
        inputs = (self.z, self.keys, self.gates, self.temperature)
        return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)

    def sorted(self) -> tuple[Problem, Tensor]:
        """The same with anchors of one gate side by side, and [B] where each of them was."""
        assert self.gate_index is not None
        index, order = self.gate_index.sort(stable=True)
        return self._replace(
            z=self.z[order],
            gate_index=index,
            labels=self.labels[order],
            pair_labels=self.pair_labels[order],
            self_index=None if self.self_index is None else self.self_index[order],
        ), order

    def masks(
        self, dtype: torch.dtype, part: slice | None = None, out: tuple[Tensor | None, Tensor | None] = (None, None)
    ) -> tuple[Tensor, Tensor]:
        """Of the anchors `part`, or all (docs/method.md, step 4), [b, N] each: 1 at positives and 0 elsewhere; 0 at negatives
        and at least 1 elsewhere. Numbers, because filling by a mask of booleans takes as long as a matrix product on a CPU.

        Args:
            out: memory to write to.
        """
        labels, pair_labels, own = self.labels, self.pair_labels, self.self_index
        if part is not None:
            labels, pair_labels, own = labels[part], pair_labels[part], None if own is None else own[part]
        positive = _of_classes(pair_labels, self.key_labels, dtype, out[0]).to(dtype)
        of_labels = _of_classes(labels, self.key_labels, dtype, out[1])
        excluded = positive + of_labels if of_labels.dtype == torch.bool else of_labels.add_(positive)
        if self.either:
            positive = torch.clamp(excluded, max=1.0, out=positive)
        if own is not None:
            positive.scatter_(1, own[:, None], 0.0)
        return positive, excluded


def _of_classes(classes: Tensor, key_labels: Tensor, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    """[b, N], 1 or true at the keys of each row's class."""
    if classes.device.type != "cpu" or classes.shape[0] * key_labels.shape[0] < _DISTINCT_FROM:
        return classes[:, None] == key_labels
    distinct, index = classes.unique(return_inverse=True)  # how many there are, only a CPU knows without waiting
    of_distinct: Tensor = (distinct[:, None] == key_labels).to(dtype)
    return torch.index_select(of_distinct, 0, index, out=out)


class Operands(NamedTuple):
    """Rows of unit size, outside autograd."""

    z: Tensor  # [B, D]
    keys: Tensor  # [N, D]
    gates: Tensor  # [U, D]
    scale: Tensor  # [B + N + U, 1], undoes the scaling in the gradients of z, keys and gates; 0 for zero rows

    @classmethod
    def prepare(cls, problem: Problem) -> Operands:
        """Rows are divided by their largest entry, so that no square over- or underflows: cosines do not notice.

        For `masked_dot`, z and keys are divided by their norms too; gates stay as they are, there their size counts.
        """
        sizes = [x.shape[0] for x in (problem.z, problem.keys, problem.gates)]
        # all at once: with a small batch, what counts is how many operations there are
        rows = torch.cat([problem.z, problem.keys, problem.gates]).to(problem.dtype)
        scale = inverse_maximum(rows)
        if not problem.cosine:
            scale[-sizes[2] :] = 1.0
        rows.mul_(scale)
        if not problem.cosine:
            vectors = slice(0, -sizes[2])
            rows[vectors], norm_scale = unit_norm(rows[vectors])
            scale[vectors] *= norm_scale
        z, keys, gates = torch.split_with_sizes(rows, sizes)
        return cls(z, keys, gates, scale)


def inverse_norms(squares: Tensor) -> Tensor:
    """1 / sqrt of |g k|^2 [rows, N], in place; 0 for what is zero.

    What is zero leaves room for the product of two inverses: with rows of unit size, float32 still tells apart norms over
    14 orders of magnitude.
    """
    return torch.threshold_(squares, smallest_square(squares.dtype), math.inf).rsqrt_()


def smallest_square(dtype: torch.dtype) -> float:
    """Up to which the square of a norm is taken for zero: see `inverse_norms`."""
    smallest: float = torch.finfo(dtype).tiny ** 0.75
    return smallest


def exponentials(x: Tensor) -> Tensor:
    """e^x for x <= 0, in place; what is below -60 is taken for -60.

    Beside the 1 of x = 0 that is nothing even in float64, and an exponential that underflows takes a CPU twenty to sixty
    times as long.
    """
    return x.clamp_(min=_NEGLIGIBLE).exp_()


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Products in the operands' dtype."""
    # switching it off where it is off already would take as long as several products of a small batch
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


def count_positives(
    labels: Tensor, pair_labels: Tensor, key_labels: Tensor, self_index: Tensor | None = None, either: bool = False
) -> Tensor:
    """Number of positive pairs, an int64 scalar: see `simlap.losses.subspace_info_nce.count_positives`."""
    count = _count_members(key_labels, pair_labels)
    if either:
        count = count + _count_members(key_labels, labels, labels == pair_labels)
    if self_index is not None:
        own = key_labels[self_index]
        count = count - ((own == pair_labels) | (own == labels) if either else own == pair_labels).sum()
    return count


def _count_members(key_labels: Tensor, classes: Tensor, without: Tensor | None = None) -> Tensor:
    """The sum over the classes [B], but those `without`, of how many keys [N] they have."""
    if len(classes) * len(key_labels) <= 2**14:
        members = key_labels == classes[:, None]
        return members.sum() if without is None else members.logical_and_(~without[:, None]).sum()
    ordered = key_labels.sort().values
    classes = classes.to(ordered.dtype).contiguous()
    members = torch.searchsorted(ordered, classes, right=True) - torch.searchsorted(ordered, classes)
    return members.sum() if without is None else members.masked_fill(without, 0).sum()
