"""InfoNCE in the subspace that a class pair's gate opens (arXiv 2410.18200; docs/method.md, steps 3 to 5).

Shapes: B anchors, N keys, D embedding width, U distinct class pairs.

The subspace cosine needs no B x N x D tensor: c = ((g^2 z) K^T) / (|g z| sqrt(g^2 (K^2)^T)). How it is computed from there,
the forms in `simlap.losses.forms` say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from simlap.losses import forms
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
    check_vectors,
)
from simlap.losses.forms import Problem, chunked, compiled, fused_available, fused_subspace_info_nce, plain
from simlap.losses.unit import inverse_count

Form = Literal["auto", "plain", "compiled", "chunked", "fused"]
_SHARED_FROM = 2**16  # B x N from which doing once what anchors share pays for sorting them


def subspace_info_nce(
    z: Tensor,
    keys: Tensor,
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
    form: Form = "auto",
) -> Tensor:
    """The mean over positive pairs of log(e^l_ij + sum over negatives of e^l_ik) - l_ij.

    Positives of anchor i are the keys of its pair class (with `positives="either"` those of its own class too, as in
    fuse), negatives the keys that are neither of its own nor of its pair class; all other keys are ignored. An anchor
    without positives contributes nothing; without any positive the loss is 0 and its gradients are zeros. Zero vectors,
    in the subspace or altogether, have similarity 0 and gradient 0. The arithmetic is float32 (float64 if any input
    is), whatever autocast says; gradients come back in their input's dtype. First derivatives only.

    Args:
        z: [B, D] anchors.
        keys: [N, D] keys, gathered by the caller where there are several workers.
        gates: [B, D] each anchor's gate, in [0, 1]; with `gate_index` [U, D], one for each class pair.
        labels: [B] int, the anchors' classes y.
        pair_labels: [B] int, their pair classes p.
        key_labels: [N] int, the keys' classes.
        gate_index: [B] int64, anchor i has the gate gates[gate_index[i]]. What depends on the gate alone is then done
            once for each gate: with few of them, half the work.
        temperature: of the softmax; safe from 0.01 upwards. A scalar tensor gets its gradient.
        similarity: `cosine` (in the subspace) or `masked_dot` (gated dot product of the vectors normalised over all of
            R^D).
        positives: the keys of the `pair` class, or of `either` class, the pair's and the anchor's own.
        self_index: [B] int64, each anchor's own column among the keys. Given, that column is no positive.
        num_positives: the normaliser where it is not the local number of positives: the global one under data
            parallelism.
        form: how to compute it; the result is the same up to rounding, `fused` aside. `auto`: `chunked`, the fastest of
            those that have been measured. `plain`: two matrix products and autograd. `compiled`: the same through
            torch.compile, which needs a compiler. `chunked`: block by block, in memory that grows with N. `fused`:
            Triton kernels on CUDA, which have not run on a GPU yet; bf16 and tf32 factors where the inputs or torch's
            matrix precision say so.

    Returns:
        Scalar, float32 or float64.

    Raises:
        ValueError: an argument of the wrong shape, type or value; or `fused` where it is not available.
        RuntimeError: `compiled` without a compiler.
    """
    check_choice("similarity", similarity, Similarity)
    check_choice("positives", positives, Positives)
    check_choice("form", form, Form)
    check_temperature(temperature)
    check_vectors(z, keys)
    if gate_index is None:
        check_floating("gates", gates, z.shape)
    else:
        check_gates(gates, z)
        check_indices("gate_index", gate_index, z, gates, of="gates")
    check_labels("labels", labels, z)
    check_labels("pair_labels", pair_labels, z)
    check_labels("key_labels", key_labels, keys)
    if self_index is not None:
        check_indices("self_index", self_index, z, keys)
    check_normaliser("num_positives", num_positives)
    weight = None if num_positives is None else inverse_count(num_positives, z.device)
    cosine, either = similarity == "cosine", positives == "either"
    problem = Problem(
        *(z, keys, gates, gate_index, labels, pair_labels, key_labels, self_index, temperature, weight, cosine, either)
    )
    if form == "auto":
        form = "chunked"
    if form == "fused":
        return _fused(problem)
    if gate_index is not None and (2 * len(gates) > len(z) or len(z) * len(keys) < _SHARED_FROM):
        problem = problem._replace(gates=F.embedding(gate_index, gates), gate_index=None)
    return _FORMS[form](problem)


_FORMS: dict[str, Callable[[Problem], Tensor]] = {"plain": plain, "compiled": compiled, "chunked": chunked}


def _fused(problem: Problem) -> Tensor:
    device = problem.z.device
    if not fused_available(device):
        raise ValueError(f"form 'fused' needs Triton and a CUDA device, not {device}")
    if problem.dtype == torch.float64:
        raise ValueError("form 'fused' is float32 inside, and an input is float64; 'auto' takes 'chunked' then")
    return fused_subspace_info_nce(**problem._replace(weight=problem.normaliser())._asdict())


def count_positives(
    labels: Tensor,
    pair_labels: Tensor,
    key_labels: Tensor,
    self_index: Tensor | None = None,
    positives: Positives = "pair",
) -> Tensor:
    """Number of (anchor, positive key) pairs; see `subspace_info_nce` for the arguments.

    Args:
        labels: [B] int; counts with `positives="either"` only.
        pair_labels: [B] int.
        key_labels: [N] int.
        self_index: [B] int64 or None. Given, own columns are left out.
        positives: `pair` or `either`.

    Returns:
        Scalar int64 on the labels' device, without synchronising with it.
    """
    return forms.count_positives(labels, pair_labels, key_labels, self_index, positives == "either")
