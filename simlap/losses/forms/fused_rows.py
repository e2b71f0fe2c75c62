# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped"
# (the parameters of a Triton kernel are pointers and tiles, for which Python has no types)
"""Triton kernels of the fused subspace InfoNCE that work row by row, in O((B + N) D): operands before, gradients after.

They do what `simlap.losses.forms.problem` and the ends of `simlap.losses.subspace_info_nce` do, in one launch each where torch
needs twenty: at B = 4,096 those launches would take longer than the sweeps. A program has ROWS rows of WIDTH >= D columns
(both powers of two); operands have STRIDE columns, zeros beyond D. Key rows are read in the order of their classes.
"""

from __future__ import annotations

import triton
import triton.language as tl

_TINY = tl.constexpr(1.1754943508222875e-38)  # smallest normal float32
_TINY_HALF = tl.constexpr(1.1754943508222875e-38**0.5)


@triton.jit
def _rows(pointer, rows, ok, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of a [., D] tensor as float32 [ROWS, WIDTH]."""
    columns = tl.arange(0, WIDTH)[None, :]
    x = tl.load(pointer + rows[:, None].to(tl.int64) * D + columns, mask=ok[:, None] & (columns < D), other=0.0)
    return x.to(tl.float32)


@triton.jit
def _store_rows(pointer, x, rows, ok, STRIDE: tl.constexpr, WIDTH: tl.constexpr):
    columns = tl.arange(0, WIDTH)[None, :]
    places = rows[:, None].to(tl.int64) * STRIDE + columns
    tl.store(pointer + places, x.to(pointer.dtype.element_ty), mask=ok[:, None] & (columns < STRIDE))


@triton.jit
def _unit_max(x, tiny):
    """`simlap.losses.unit.unit_max`; scale [ROWS, 1]."""
    largest = tl.max(tl.abs(x), axis=1)[:, None]
    dead = largest < tiny
    inverse = tl.where(dead, 0.0, 1.0 / tl.where(dead, 1.0, largest))
    return tl.where(dead, 0.0, x / tl.where(dead, 1.0, largest)), inverse


@triton.jit
def _unit_norm(x):
    """`simlap.losses.unit.unit_norm`; scale [ROWS, 1]."""
    norm = tl.sqrt(tl.sum(x * x, axis=1))[:, None]
    dead = norm == 0.0
    inverse = tl.where(dead, 0.0, 1.0 / tl.where(dead, 1.0, norm))
    return x * inverse, inverse


@triton.jit
def _unit(x, COSINE: tl.constexpr):
    """Rows over their maximum and, for the masked dot, their norm; scale [ROWS, 1]."""
    x, scale = _unit_max(x, _TINY)
    if not COSINE:
        x, norm_scale = _unit_norm(x)
        scale *= norm_scale
    return x, scale


@triton.jit
def _tangent(gradient, unit):
    """`simlap.losses.unit.tangent`."""
    return gradient - unit * tl.sum(gradient * unit, axis=1)[:, None]


@triton.jit
def _anchor(z_ptr, gates_ptr, gate_index_ptr, rows, ok, INDEXED, COSINE: tl.constexpr, D, WIDTH: tl.constexpr):
    """z and gates of unit size with their scales, and (cosine) q = gates z of unit norm with its scale."""
    z, z_scale = _unit(_rows(z_ptr, rows, ok, D, WIDTH), COSINE)
    gate_rows = rows
    if INDEXED:
        gate_rows = tl.load(gate_index_ptr + rows, mask=ok, other=0)
    gates = _rows(gates_ptr, gate_rows, ok, D, WIDTH)
    gates_scale = z_scale
    q = z
    q_scale = z_scale
    if COSINE:
        gates, gates_scale = _unit_max(gates, _TINY)
        # gate and anchor may be large in different places, so once more
        q, q_scale = _unit_max(gates * z, _TINY_HALF)
        q, norm_scale = _unit_norm(q)
        q_scale *= norm_scale
    return z, z_scale, gates, gates_scale, q, q_scale


@triton.jit(do_not_specialize=["num_anchors"])
def anchor_operands(
    z_ptr,
    gates_ptr,
    gate_index_ptr,
    u_ptr,
    squares_ptr,
    num_anchors,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    INDEXED: tl.constexpr,
    COSINE: tl.constexpr,
    SQUARES: tl.constexpr,
):
    """u [B, STRIDE] and, with SQUARES, the squared gates."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ok = rows < num_anchors
    z, _, gates, _, q, _ = _anchor(z_ptr, gates_ptr, gate_index_ptr, rows, ok, INDEXED, COSINE, D, WIDTH)
    u = gates * q if COSINE else gates * gates * z
    _store_rows(u_ptr, u, rows, ok, STRIDE, WIDTH)
    if SQUARES:
        _store_rows(squares_ptr, gates * gates, rows, ok, STRIDE, WIDTH)


@triton.jit(do_not_specialize=["num_keys"])
def key_operands(
    keys_ptr,
    order_ptr,
    unit_ptr,
    squares_ptr,
    num_keys,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    COSINE: tl.constexpr,
):
    """Keys of unit size [N, STRIDE] and (cosine) their squares, in the order given."""
    places = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ok = places < num_keys
    keys, _ = _unit(_rows(keys_ptr, tl.load(order_ptr + places, mask=ok, other=0), ok, D, WIDTH), COSINE)
    _store_rows(unit_ptr, keys, places, ok, STRIDE, WIDTH)
    if COSINE:
        _store_rows(squares_ptr, keys * keys, places, ok, STRIDE, WIDTH)


@triton.jit
def _sum_rows(
    pointer, rows, ok, count, SPLITS: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """Rows of a [SPLITS, count, STRIDE] float32 tensor, summed over the splits."""
    columns = tl.arange(0, WIDTH)[None, :]
    mask = ok[:, None] & (columns < STRIDE)
    total = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    for split in range(SPLITS):
        places = (split * count + rows.to(tl.int64))[:, None] * STRIDE + columns
        total += tl.load(pointer + places, mask=mask, other=0.0)
    return total


@triton.jit
def _sum_negatives(
    pointer,
    rows,
    ok,
    count,
    largest_ptr,
    lse_ptr,
    share_ptr,
    SPLITS: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The same, each split in its own base: times A_i 2^(m_i - LSE_i)."""
    columns = tl.arange(0, WIDTH)[None, :]
    mask = ok[:, None] & (columns < STRIDE)
    lse = tl.load(lse_ptr + rows, mask=ok, other=0.0)
    share = tl.load(share_ptr + rows, mask=ok, other=0.0)
    base = tl.where(lse == float("-inf"), 0.0, lse)  # without negatives m_i is -inf too
    total = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    for split in range(SPLITS):
        weight = share * tl.exp2(tl.load(largest_ptr + split * count + rows, mask=ok, other=0.0) - base)
        places = (split * count + rows.to(tl.int64))[:, None] * STRIDE + columns
        total += tl.load(pointer + places, mask=mask, other=0.0) * weight[:, None]
    return total


@triton.jit(do_not_specialize=["num_anchors"])
def anchor_gradients(
    z_ptr,
    gates_ptr,
    gate_index_ptr,
    largest_ptr,
    lse_ptr,
    share_ptr,
    negative_first_ptr,
    negative_second_ptr,
    positive_first_ptr,
    positive_second_ptr,
    factor_ptr,
    grad_z_ptr,
    grad_gates_ptr,
    num_anchors,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    INDEXED: tl.constexpr,
    COSINE: tl.constexpr,
    SQUARES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Gradients in z and in each anchor's gate [B, D] (without SQUARES: but for the gate's part in the norms |g k|)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ok = rows < num_anchors
    z, z_scale, gates, gates_scale, q, q_scale = _anchor(
        z_ptr, gates_ptr, gate_index_ptr, rows, ok, INDEXED, COSINE, D, WIDTH
    )
    factor = tl.load(factor_ptr)
    grad_u = _sum_negatives(
        negative_first_ptr, rows, ok, num_anchors, largest_ptr, lse_ptr, share_ptr, SPLITS, STRIDE, ROWS, WIDTH
    ) - _sum_rows(positive_first_ptr, rows, ok, num_anchors, SPLITS, STRIDE, ROWS, WIDTH)
    if COSINE:
        grad_q = _tangent(grad_u * gates, q) * q_scale
        grad_z = grad_q * gates
        grad_gates = grad_u * q + grad_q * z
        if SQUARES:
            by_square = _sum_negatives(
                negative_second_ptr, rows, ok, num_anchors, largest_ptr, lse_ptr, share_ptr, SPLITS, STRIDE, ROWS, WIDTH
            ) - _sum_rows(positive_second_ptr, rows, ok, num_anchors, SPLITS, STRIDE, ROWS, WIDTH)
            grad_gates -= gates * by_square
        grad_gates *= gates_scale
    else:
        grad_z = _tangent(grad_u * gates * gates, z)
        grad_gates = 2.0 * gates * z * grad_u
    _store_rows(grad_z_ptr, grad_z * (z_scale * factor), rows, ok, D, WIDTH)
    _store_rows(grad_gates_ptr, grad_gates * factor, rows, ok, D, WIDTH)


@triton.jit(do_not_specialize=["num_keys"])
def key_gradients(
    keys_ptr,
    order_ptr,
    first_ptr,
    second_ptr,
    factor_ptr,
    grad_keys_ptr,
    num_keys,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    COSINE: tl.constexpr,
    SPLITS: tl.constexpr,
    SECOND_SPLITS: tl.constexpr,
):
    """Gradients in the keys [N, D], back in the order of the batch."""
    places = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ok = places < num_keys
    rows = tl.load(order_ptr + places, mask=ok, other=0)
    keys, scale = _unit(_rows(keys_ptr, rows, ok, D, WIDTH), COSINE)
    gradient = _sum_rows(first_ptr, places, ok, num_keys, SPLITS, STRIDE, ROWS, WIDTH)
    if COSINE:
        gradient -= keys * _sum_rows(second_ptr, places, ok, num_keys, SECOND_SPLITS, STRIDE, ROWS, WIDTH)
    else:
        gradient = _tangent(gradient, keys)
    _store_rows(grad_keys_ptr, gradient * (-scale * tl.load(factor_ptr)), rows, ok, D, WIDTH)


@triton.jit
def segment_sums(
    x_ptr,
    order_ptr,
    bounds_ptr,
    sums_ptr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """sums[s] = the sum of x[order[bounds[s] : bounds[s + 1]]], rows of D; always in the same order."""
    segment = tl.program_id(0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    begin, end = tl.load(bounds_ptr + segment), tl.load(bounds_ptr + segment + 1)
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in range(begin, end, ROWS):
        places = start + tl.arange(0, ROWS)
        ok = places < end
        rows = tl.load(order_ptr + places, mask=ok, other=0)[:, None].to(tl.int64)
        total += tl.load(x_ptr + rows * D + columns, mask=ok[:, None] & (columns < D), other=0.0)
    tl.store(sums_ptr + segment.to(tl.int64) * D + columns, tl.sum(total, axis=0)[None, :], mask=columns < D)
