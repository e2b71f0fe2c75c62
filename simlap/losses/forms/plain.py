"""Two matrix products, differentiated by autograd; and the same through torch.compile.

Everything of [B, N] is kept for the backward pass: fast where that is small. The oracle beside the other forms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from simlap.losses.forms.problem import FAR_BELOW, Problem, smallest_square, without_autocast
from simlap.losses.unit import unit_max


def plain(problem: Problem) -> Tensor:
    """The loss, a scalar."""
    with without_autocast(problem.z.device):
        return _loss(_with_tensors(problem))


def compiled(problem: Problem) -> Tensor:
    """The same through torch.compile, which compiles when a shape is first met, and once more for changing shapes.

    Raises:
        RuntimeError: there is no working compiler (of C++; on CUDA Triton's).
    """
    from torch._dynamo.exc import BackendCompilerFailed  # takes seconds

    with without_autocast(problem.z.device):
        try:
            return _compiled()(_with_tensors(problem))
        except BackendCompilerFailed as error:
            raise RuntimeError(
                f"form 'compiled' of the subspace InfoNCE needs a working compiler, as torch.compile does "
                f"({str(error).splitlines()[0]}); the other forms (train.loss: auto, plain, chunked) do not"
            ) from error


@functools.cache
def _compiled() -> Callable[[Problem], Tensor]:
    return torch.compile(_loss)


def _with_tensors(problem: Problem) -> Problem:
    """A number as temperature would be a new program for every value."""
    temperature = problem.temperature
    if not isinstance(temperature, Tensor):
        temperature = torch.full((), temperature, dtype=problem.dtype, device=problem.z.device)
    return problem._replace(temperature=temperature.to(problem.z.device, problem.dtype))


def _loss(problem: Problem) -> Tensor:
    dtype = problem.dtype
    z, keys = (unit_max(x.to(dtype))[0] for x in (problem.z, problem.keys))
    gates = problem.gates.to(dtype)
    cosines = _cosines(z, keys, gates, problem.gate_index) if problem.cosine else _masked_dots(z, keys, gates, problem)
    logits = cosines / problem.temperature  # [B, N]
    positive, excluded = problem.masks(dtype)
    of_negatives = (logits - FAR_BELOW * excluded).logsumexp(dim=1, keepdim=True)
    losses = F.softplus(of_negatives - logits, threshold=80.0)  # the default threshold of 20 shows in float64
    return (losses * positive).sum() * problem.normaliser(positive).to(dtype)


def _cosines(z: Tensor, keys: Tensor, gates: Tensor, gate_index: Tensor | None) -> Tensor:
    gates = unit_max(gates)[0]
    squared = gates.square()
    of_keys = _inverse_norms(squared @ keys.square().T)  # 1 / |g k|, [U, N]
    if gate_index is not None:
        of_keys, squared = of_keys[gate_index], squared[gate_index]
    u = squared * z
    of_anchors = _inverse_norms((u * z).sum(dim=1, keepdim=True))  # 1 / |g z|, [B, 1]
    return ((u * of_anchors) @ keys.T) * of_keys


def _inverse_norms(squares: Tensor) -> Tensor:
    """As `inverse_norms`; in two steps, because the gradient of rsqrt, its cube, would overflow."""
    return torch.threshold(squares, smallest_square(squares.dtype), math.inf).sqrt().reciprocal()


def _masked_dots(z: Tensor, keys: Tensor, gates: Tensor, problem: Problem) -> Tensor:
    if problem.gate_index is not None:
        gates = gates[problem.gate_index]
    return (gates.square() * F.normalize(z, dim=1)) @ F.normalize(keys, dim=1).T
