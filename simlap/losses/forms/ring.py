"""The subspace InfoNCE over the keys of all workers, of which none ever holds more than three shares: the keys go round.

Shapes: W workers; b anchors of this one, which are its share of the N keys too; n keys of the share at hand, or of a block of
it; D embedding width; U rows of the gates.

Every worker passes the keys it has on to the worker before it, W - 1 times, while it works on them. They go round three times
(notation of `subspace_info_nce`):

    1. LSE_i, the log-sum-exp of anchor i's negative logits, kept as the largest one and the mass relative to it
    2. the value, and a_i = sum over positives of sigmoid(LSE_i - l_ij): the gradient at any negative needs all of it
    3. in backward: the gradients; those of the keys travel one step behind the keys, grow at every worker, and come home

The gathered form needs 6 products of b x N x D for the `cosine`, this one 10; what it saves is memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from simlap.losses.arguments import (
    Positives,
    Similarity,
    check_choice,
    check_floating,
    check_gates,
    check_indices,
    check_labels,
    check_normaliser,
    check_temperature,
)
from simlap.losses.forms.circle import Circle
from simlap.losses.forms.problem import FAR_BELOW, Problem, exponentials, inverse_norms, without_autocast
from simlap.losses.unit import inverse_count, tangent, unit_max, unit_norm

# entries of one [b, n] buffer: a megabyte stays in a core's cache, a GPU wants work to fill it
_BLOCK_ENTRIES = {"cpu": 2**18, "cuda": 2**24}
_BLOCK_COLUMNS = 64  # at least: thinner products are slow
_GRADIENTS = 2  # tag of their messages


def ring_subspace_info_nce(
    z: Tensor,
    gates: Tensor,
    labels: Tensor,
    pair_labels: Tensor,
    key_labels: Tensor,
    *,
    gate_index: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    similarity: Similarity = "cosine",
    positives: Positives = "pair",
    self_index: Tensor | None = None,
    num_positives: float | Tensor | None = None,
    sizes: Sequence[int],
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """`subspace_info_nce` of this worker's anchors over the concatenated z of all workers, in rank order.

    Equal to gathering z with gradient and calling that, its gradients included: z receives those of this worker's
    anchors and, from every worker, those of its rows as keys. All workers must call it, and all must run backward.

    Args:
        z: [b, D] anchors, and this worker's share of the keys.
        gates: [b, D] each anchor's gate, in [0, 1]; with `gate_index` [U, D].
        labels: [b] int, the anchors' classes y.
        pair_labels: [b] int, their pair classes p.
        key_labels: [N] int, the classes of all workers' keys, in rank order.
        gate_index: [b] int64, which of the gates each anchor has.
        temperature: of the softmax; safe from 0.01 upwards. A scalar tensor gets its gradient.
        similarity: `cosine` or `masked_dot`.
        positives: `pair` or `either`.
        self_index: [b] int64, each anchor's own column among all keys. Given, that column is no positive.
        num_positives: the normaliser where it is not the number of positives of this worker's anchors.
        sizes: the workers' numbers of rows, b among them.
        group: process group; default: all.

    Returns:
        Scalar, float32 or float64.

    Raises:
        ValueError: an argument of the wrong shape, type or value.
    """
    check_choice("similarity", similarity, Similarity)
    check_choice("positives", positives, Positives)
    check_temperature(temperature)
    if z.ndim != 2 or z.shape[1] == 0:
        raise ValueError(f"z must be [b, D] with D > 0, not {[*z.shape]}")
    check_floating("z", z, z.shape)
    if gate_index is None:
        check_floating("gates", gates, z.shape)
    else:
        check_gates(gates, z)
        check_indices("gate_index", gate_index, z, gates, of="gates")
    check_labels("labels", labels, z)
    check_labels("pair_labels", pair_labels, z)
    circle = Circle.of(z, sizes, group)
    check_labels("key_labels", key_labels, key_labels.new_empty(sum(sizes)))
    if self_index is not None:
        check_indices("self_index", self_index, z, key_labels)
    check_normaliser("num_positives", num_positives)
    if num_positives is None:
        from simlap.losses.subspace_info_nce import count_positives  # which imports the forms

        num_positives = count_positives(labels, pair_labels, key_labels, self_index, positives)
    weight = inverse_count(num_positives, z.device)
    if gate_index is not None and 2 * len(gates) > len(z):  # what is shared does not pay
        gates, gate_index = F.embedding(gate_index, gates), None
    cosine, either = similarity == "cosine", positives == "either"
    problem = Problem(
        *(z, z, gates, gate_index, labels, pair_labels, key_labels, self_index, temperature, weight, cosine, either)
    )
    loss: Tensor = _Ring.apply(z, gates, temperature, problem, circle)
    return loss


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, gates: Tensor, temperature: float | Tensor, problem: Problem, circle: Circle
    ) -> Tensor:
        dtype, z = problem.dtype, z.contiguous()
        inverse = 1.0 / (temperature.to(z.device, dtype) if isinstance(temperature, Tensor) else temperature)
        with without_autocast(z.device):
            anchors = _Anchors.prepare(z, gates, inverse, problem)
            largest = torch.full((len(z), 1), -torch.inf, dtype=dtype, device=z.device)
            mass, share, total = torch.zeros_like(largest), torch.zeros_like(largest), largest.new_zeros(())
            for block in _round(z, circle, problem):
                negatives = anchors.logits(block.keys)[0].sub_(block.masks(problem)[1], alpha=FAR_BELOW)
                before, largest = largest, torch.maximum(largest, negatives.amax(dim=1, keepdim=True))
                mass.mul_((before - largest).exp_()).add_(
                    exponentials(negatives.sub_(largest)).sum(dim=1, keepdim=True)
                )
            of_negatives = largest + mass.log()  # LSE_i [b, 1]
            for block in _round(z, circle, problem):
                margin, positive = of_negatives - anchors.logits(block.keys)[0], block.masks(problem)[0]
                # the default threshold of 20 shows in float64
                total += F.softplus(margin, threshold=80.0).mul_(positive).sum()
                share += margin.sigmoid_().mul_(positive).sum(dim=1, keepdim=True)
            share /= mass
        ctx.save_for_backward(z, gates, largest, of_negatives, share)
        ctx.inverse, ctx.problem, ctx.circle = inverse, problem, circle
        return total * problem.normaliser().to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        z, gates, largest, of_negatives, share = ctx.saved_tensors
        problem, circle, temperature = ctx.problem, ctx.circle, ctx.problem.temperature
        weight = problem.normaliser().to(largest) * grad_output
        with without_autocast(z.device):
            anchors = _Anchors.prepare(z, gates, ctx.inverse, problem)
            of_u, of_squares = torch.zeros_like(anchors.u), torch.zeros_like(anchors.gates)
            of_temperature, of_own_keys, passing = largest.new_zeros(()), torch.empty_like(anchors.u), None
            for step, rows in enumerate(circle.visit(z)):
                of_keys = of_own_keys if step == 0 else torch.empty_like(rows, dtype=problem.dtype)
                for block in _blocks(rows, step, circle, problem):
                    logits, norms = anchors.logits(block.keys)
                    positive, excluded = block.masks(problem)
                    a = (of_negatives - logits).sigmoid_().mul_(positive)
                    negatives = torch.sub(logits, excluded, alpha=FAR_BELOW).sub_(largest)
                    grad = exponentials(negatives).mul_(share).sub_(a)
                    by_logit = logits.mul_(grad)
                    if isinstance(temperature, Tensor):
                        of_temperature += by_logit.sum()
                    if norms is None or anchors.squared_gates is None:
                        of_block = grad.T @ anchors.u
                    else:
                        by_square = anchors.collect(by_logit).mul_(norms).mul_(norms)  # in |g k|^2, times -2
                        of_squares.addmm_(by_square, block.keys.square())
                        grad.mul_(anchors.spread(norms))  # in u_i k_j
                        of_block = (
                            (by_square.T @ anchors.squared_gates).mul_(block.keys).neg_().addmm_(grad.T, anchors.u)
                        )
                    of_u.addmm_(grad, block.keys)
                    torch.mul(of_block, weight, out=of_keys[block.part])
                if passing is not None:
                    of_keys += passing.wait()  # what the workers behind have found
                if step > 0:
                    passing = circle.pass_on(of_keys, step + 1, _GRADIENTS)
            of_z, of_gates = anchors.gradients(of_u, of_squares, ctx.inverse)
            of_z = of_z.mul_(weight).add_(of_own_keys)
            if passing is not None:
                of_z += passing.wait()  # the sum of all others comes home
            if not problem.cosine:
                of_z = tangent(of_z, anchors.z)
            of_z, of_gates = of_z * anchors.z_scale, of_gates * anchors.gates_scale * weight
        to_temperature = None
        if isinstance(temperature, Tensor):
            to_temperature = (of_temperature * -ctx.inverse * weight).to(temperature.device, temperature.dtype)
        return of_z.to(z.dtype), of_gates.to(gates.dtype), to_temperature, None, None


class _Block(NamedTuple):
    """Some of a worker's keys."""

    keys: Tensor  # [n, D], of unit size
    part: slice
    """Where they are among that worker's."""
    columns: slice
    """Where they are among all keys."""

    def masks(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """As `Problem.masks`, of all anchors and these keys: [b, n] each."""
        here = problem._replace(key_labels=problem.key_labels[self.columns], self_index=None)
        positive, excluded = here.masks(problem.dtype)
        if problem.self_index is not None:
            numbers = torch.arange(self.columns.start, self.columns.stop, device=positive.device)
            positive.mul_(numbers != problem.self_index[:, None])
        return positive, excluded


def _round(z: Tensor, circle: Circle, problem: Problem) -> Iterator[_Block]:
    """The keys of all workers, this one's first."""
    for step, rows in enumerate(circle.visit(z)):
        yield from _blocks(rows, step, circle, problem)


def _blocks(rows: Tensor, step: int, circle: Circle, problem: Problem) -> Iterator[_Block]:
    """The keys that are here after so many steps."""
    anchors, begin = max(len(problem.z), 1), circle.begin(step)
    width = max(_BLOCK_COLUMNS, _BLOCK_ENTRIES.get(rows.device.type, 2**24) // anchors)
    for start in range(0, len(rows), width):
        part = slice(start, min(start + width, len(rows)))
        keys, _ = _unit(rows[part].to(problem.dtype), problem.cosine)
        yield _Block(keys, part, slice(begin + part.start, begin + part.stop))


def _unit(rows: Tensor, cosine: bool) -> tuple[Tensor, Tensor]:
    """Rows whose squares neither over- nor underflow, which cosines do not notice; without them, of norm 1. And the scale."""
    rows, scale = unit_max(rows)
    if cosine:
        return rows, scale
    rows, norm_scale = unit_norm(rows)
    return rows, scale * norm_scale


class _Anchors(NamedTuple):
    """This worker's, in the form in which all keys meet them; rows are scaled as in `Operands`."""

    z: Tensor  # [b, D]
    z_scale: Tensor
    gates: Tensor  # [U, D]
    gates_scale: Tensor | float
    gate_index: Tensor | None  # [b]
    factor: Tensor  # [b, D], with which of_u becomes the gradient in q, or without q in z
    q: Tensor  # [b, D], g z of unit norm; for the cosine
    q_scale: Tensor
    u: Tensor  # [b, D], what is multiplied with the keys
    squared_gates: Tensor | None  # [U, D], for the cosine

    @classmethod
    def prepare(cls, z: Tensor, gates: Tensor, inverse_temperature: float | Tensor, problem: Problem) -> _Anchors:
        z, z_scale = _unit(z.to(problem.dtype), problem.cosine)
        gates, index = gates.to(problem.dtype), problem.gate_index
        if not problem.cosine:
            factor = _spread(gates, index).square() * inverse_temperature
            return cls(z, z_scale, gates, 1.0, index, factor, z, z_scale, factor * z, None)
        gates, gates_scale = unit_max(gates)
        own = _spread(gates, index)
        gated = own * z
        q_scale = inverse_norms(gated.square().sum(dim=1, keepdim=True))  # 1 / |g z|
        q = gated * q_scale
        factor = own * inverse_temperature
        return cls(z, z_scale, gates, gates_scale, index, factor, q, q_scale, factor * q, gates.square())

    def logits(self, keys: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of keys [n, D] of unit size: [b, n], and for the cosine 1 / |g k_j| [U, n], 0 for zero vectors."""
        products = self.u @ keys.T
        if self.squared_gates is None:
            return products, None
        norms = inverse_norms(self.squared_gates @ keys.square().T)
        return products.mul_(self.spread(norms)), norms

    def gradients(self, of_u: Tensor, of_squares: Tensor, inverse_temperature: float | Tensor) -> tuple[Tensor, Tensor]:
        """In z and in the gates, from those in u and (times -2) in the squared gates."""
        own = self.spread(self.gates)
        if self.squared_gates is None:
            return of_u * self.factor, self.collect(of_u.mul_(own).mul_(self.z).mul_(2.0 * inverse_temperature))
        of_q = tangent(of_u * self.factor, self.q).mul_(self.q_scale)
        of_gates = self.collect(of_u.mul_(self.q).mul_(inverse_temperature).addcmul_(of_q, self.z))
        return of_q.mul_(own), of_gates.addcmul_(self.gates, of_squares, value=-1.0)

    def spread(self, of_gates: Tensor) -> Tensor:
        """[U, n] -> [b, n]."""
        return _spread(of_gates, self.gate_index)

    def collect(self, of_anchors: Tensor) -> Tensor:
        """Sums over the anchors of each gate, in a fixed order: [b, n] -> [U, n]."""
        if self.gate_index is None:
            return of_anchors
        sums = of_anchors.new_zeros(len(self.gates), of_anchors.shape[1])
        if sums.device.type == "cpu":  # index_add_ of a GPU adds in any order, index_put_ of a CPU is slow
            return sums.index_add_(0, self.gate_index, of_anchors)
        return sums.index_put_((self.gate_index,), of_anchors, accumulate=True)


def _spread(of_gates: Tensor, gate_index: Tensor | None) -> Tensor:
    return of_gates if gate_index is None else of_gates.index_select(0, gate_index)
