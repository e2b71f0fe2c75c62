# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped"
# (the parameters of a Triton kernel are pointers and tiles, for which Python has no types)
"""Triton kernels of the fused subspace InfoNCE: the sweeps over anchors x keys, none of which leaves a tile of it behind.

A program keeps a block of X rows (with their sums), and streams Y rows at a time past it. Tiles of S = u k^T and of the
squared norms n = g^2 (k^2)^T live in registers only. Logarithms and exponentials are to base 2: scale = log2(e) /
temperature. Keys are sorted by class; `code` is a key's class as the first position of that class, `own` and `pair` are
the anchors' classes in the same coin (or the number of keys, where no key is of the class).

    negatives: m_i, sum_k 2^(x_ik - m_i), and with those weights the sums of c, k / |g k| and c k^2 / |g k|^2
    positives: log-sum-exp from the above; sums over positives of softplus, a, and a times the same three
    keys:      sums over anchors of d_ik u / |g k| and d_ik c g^2 / |g k|^2, d = a at positives, -A_i p_ik at negatives

Columns beyond TILE, where D is wide: each program sums one TILE of columns, and makes its S and n from CHUNKs of columns
(CHUNK = 0: all at once, D = TILE). NORMS: 0, none (masked dot); 1, by products; 2, from a table of inverse norms [U, N].
No atomics: every output has one writer, so results are the same bits every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

# squared norms below have no inverse: simlap.losses.subspace_info_nce (smallest normal float32 ^ 0.75)
_DEAD = tl.constexpr(1.1754943508222875e-38**0.75)
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tile(pointer, offsets, ok, columns):
    """Rows at `offsets` [rows, 1], these columns; zeros where not `ok` [rows, 1]."""
    return tl.load(pointer + offsets + columns[None, :], mask=ok, other=0.0)


@triton.jit
def _products(
    x_first,
    x_second,
    x_first_ptr,
    x_second_ptr,
    x_offsets,
    x_ok,
    y_first,
    y_second,
    y_first_ptr,
    y_second_ptr,
    y_offsets,
    y_ok,
    STRIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    NORMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """S [X, Y] and, with NORMS = 1, n [X, Y]."""
    if CHUNK == 0:
        s = tl.dot(x_first, tl.trans(y_first), input_precision=PRECISION)
        n = s
        if NORMS == 1:
            n = tl.dot(x_second, tl.trans(y_second), input_precision=PRECISION)
    else:
        s = tl.zeros([x_offsets.shape[0], y_offsets.shape[0]], dtype=tl.float32)
        n = tl.zeros([x_offsets.shape[0], y_offsets.shape[0]], dtype=tl.float32)
        for start in range(0, STRIDE, CHUNK):
            columns = start + tl.arange(0, CHUNK)
            x_part = _tile(x_first_ptr, x_offsets, x_ok, columns)
            y_part = _tile(y_first_ptr, y_offsets, y_ok, columns)
            s = tl.dot(x_part, tl.trans(y_part), s, input_precision=PRECISION)
            if NORMS == 1:
                x_part = _tile(x_second_ptr, x_offsets, x_ok, columns)
                y_part = _tile(y_second_ptr, y_offsets, y_ok, columns)
                n = tl.dot(x_part, tl.trans(y_part), n, input_precision=PRECISION)
    return s, n


@triton.jit
def _inverse_norms(n, table_ptr, pairs, keys, ok, num_keys, NORMS: tl.constexpr):
    """1 / |g k| of the tile, 0 for dead ones; `pairs` and `keys` broadcast to its shape."""
    if NORMS == 1:
        dead = n < _DEAD
        inverse = tl.where(dead, 0.0, tl.rsqrt(tl.where(dead, 1.0, n)))
    elif NORMS == 2:
        inverse = tl.load(table_ptr + pairs.to(tl.int32) * num_keys + keys, mask=ok, other=0.0)
    else:
        inverse = tl.full(n.shape, 1.0, dtype=tl.float32)
    return inverse


@triton.jit(do_not_specialize=["num_anchors", "num_keys", "span"])
def negatives(
    u_ptr,
    gate_ptr,
    key_ptr,
    square_ptr,
    table_ptr,
    pair_row_ptr,
    own_ptr,
    pair_ptr,
    code_ptr,
    scale_ptr,
    largest_ptr,
    mass_ptr,
    mean_ptr,
    first_ptr,
    second_ptr,
    num_anchors,
    num_keys,
    span,
    X: tl.constexpr,
    Y: tl.constexpr,
    STRIDE: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    NORMS: tl.constexpr,
    GRADIENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of anchors past the `span` keys of its split; statistics [splits, B], sums [splits, B, STRIDE]."""
    block, part, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = block * X + tl.arange(0, X)
    ok = rows < num_anchors
    offsets = rows[:, None].to(tl.int64) * STRIDE
    columns = part * TILE + tl.arange(0, TILE)
    u, gate = offsets, offsets  # not read if in chunks
    if CHUNK == 0:
        u = _tile(u_ptr, offsets, ok[:, None], columns)
        if NORMS == 1:
            gate = _tile(gate_ptr, offsets, ok[:, None], columns)
    pair_rows = rows
    if NORMS == 2:
        pair_rows = tl.load(pair_row_ptr + rows, mask=ok, other=0)
    own = tl.load(own_ptr + rows, mask=ok, other=-1)
    pair = tl.load(pair_ptr + rows, mask=ok, other=-1)
    scale = tl.load(scale_ptr)
    largest = tl.full([X], float("-inf"), dtype=tl.float32)
    mass = tl.zeros([X], dtype=tl.float32)
    mean = tl.zeros([X], dtype=tl.float32)
    first = tl.zeros([X, TILE], dtype=tl.float32)
    second = tl.zeros([X, TILE], dtype=tl.float32)
    begin = split * span
    for start in range(begin, tl.minimum(begin + span, num_keys), Y):
        keys = start + tl.arange(0, Y)
        key_ok = keys < num_keys
        key_offsets = keys[:, None].to(tl.int64) * STRIDE
        key, square = key_offsets, key_offsets
        if GRADIENT or CHUNK == 0:
            key = _tile(key_ptr, key_offsets, key_ok[:, None], columns)
            if NORMS == 1:
                square = _tile(square_ptr, key_offsets, key_ok[:, None], columns)
        s, n = _products(
            u, gate, u_ptr, gate_ptr, offsets, ok[:, None],
            key, square, key_ptr, square_ptr, key_offsets, key_ok[:, None],
            STRIDE, CHUNK, NORMS, PRECISION,
        )  # fmt: skip
        both_ok = ok[:, None] & key_ok[None, :]
        inverse = _inverse_norms(n, table_ptr, pair_rows[:, None], keys[None, :], both_ok, num_keys, NORMS)
        cosines = s * inverse
        code = tl.load(code_ptr + keys, mask=key_ok, other=-2)[None, :]
        negative = (code != own[:, None]) & (code != pair[:, None]) & (code >= 0)
        x = tl.where(negative, cosines * scale, float("-inf"))
        new = tl.maximum(largest, tl.max(x, axis=1))
        base = tl.where(new == float("-inf"), 0.0, new)  # no negative so far
        keep = tl.exp2(largest - base)
        p = tl.exp2(x - base[:, None])
        mass = mass * keep + tl.sum(p, axis=1)
        if GRADIENT:
            mean = mean * keep + tl.sum(p * cosines, axis=1)
            p *= inverse
            first = tl.dot(p.to(key.dtype), key, first * keep[:, None], input_precision=PRECISION)
            if NORMS == 1:
                p *= inverse * cosines
                second = tl.dot(p.to(key.dtype), square, second * keep[:, None], input_precision=PRECISION)
        largest = new
    places = split.to(tl.int64) * num_anchors + rows
    if part == 0:
        tl.store(largest_ptr + places, largest, mask=ok)
        tl.store(mass_ptr + places, mass, mask=ok)
        if GRADIENT:
            tl.store(mean_ptr + places, mean, mask=ok)
    if GRADIENT:
        sums = places[:, None] * STRIDE + columns[None, :]
        tl.store(first_ptr + sums, first, mask=ok[:, None])
        if NORMS == 1:
            tl.store(second_ptr + sums, second, mask=ok[:, None])


@triton.jit
def _log_sum_exp(largest_ptr, mass_ptr, mean_ptr, rows, ok, num_anchors, SPLITS: tl.constexpr, GRADIENT: tl.constexpr):
    """Over all splits: log2 of the sum over negatives of 2^x (-inf without negatives), and their mean cosine."""
    largest = tl.full(rows.shape, float("-inf"), dtype=tl.float32)
    for split in range(SPLITS):
        largest = tl.maximum(largest, tl.load(largest_ptr + split * num_anchors + rows, mask=ok, other=0.0))
    base = tl.where(largest == float("-inf"), 0.0, largest)
    mass = tl.zeros(rows.shape, dtype=tl.float32)
    mean = tl.zeros(rows.shape, dtype=tl.float32)
    for split in range(SPLITS):
        places = split * num_anchors + rows
        keep = tl.exp2(tl.load(largest_ptr + places, mask=ok, other=0.0) - base)
        mass += keep * tl.load(mass_ptr + places, mask=ok, other=1.0)
        if GRADIENT:
            mean += keep * tl.load(mean_ptr + places, mask=ok, other=0.0)
    none = mass == 0.0
    divisor = tl.where(none, 1.0, mass)
    return tl.where(none, float("-inf"), base + tl.log2(divisor)), mean / divisor


@triton.jit(do_not_specialize=["num_anchors", "num_keys"])
def positives(
    u_ptr,
    gate_ptr,
    key_ptr,
    square_ptr,
    table_ptr,
    pair_row_ptr,
    order_ptr,
    begin_ptr,
    end_ptr,
    self_ptr,
    scale_ptr,
    largest_ptr,
    mass_ptr,
    mean_ptr,
    lse_ptr,
    negative_mean_ptr,
    value_ptr,
    share_ptr,
    pull_ptr,
    first_ptr,
    second_ptr,
    num_anchors,
    num_keys,
    X: tl.constexpr,
    Y: tl.constexpr,
    STRIDE: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    NORMS: tl.constexpr,
    GRADIENT: tl.constexpr,
    SELF: tl.constexpr,
    ADD: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of anchors, in the order of their class, past that class's keys [begin, end) only.

    With ADD the sums are added to what is there: a second class of the same anchors.
    """
    block, part, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    places = block * X + tl.arange(0, X)
    ok = places < num_anchors
    rows = tl.load(order_ptr + places, mask=ok, other=0)
    begin = tl.load(begin_ptr + rows, mask=ok, other=num_keys)
    end = tl.load(end_ptr + rows, mask=ok, other=0)
    offsets = rows[:, None].to(tl.int64) * STRIDE
    columns = part * TILE + tl.arange(0, TILE)
    u, gate = offsets, offsets
    if CHUNK == 0:
        u = _tile(u_ptr, offsets, ok[:, None], columns)
        if NORMS == 1:
            gate = _tile(gate_ptr, offsets, ok[:, None], columns)
    pair_rows = rows
    if NORMS == 2:
        pair_rows = tl.load(pair_row_ptr + rows, mask=ok, other=0)
    selves = begin
    if SELF:
        selves = tl.load(self_ptr + rows, mask=ok, other=-1)
    scale = tl.load(scale_ptr)
    lse, negative_mean = _log_sum_exp(largest_ptr, mass_ptr, mean_ptr, rows, ok, num_anchors, SPLITS, GRADIENT)
    value = tl.zeros([X], dtype=tl.float32)
    share = tl.zeros([X], dtype=tl.float32)
    pull = tl.zeros([X], dtype=tl.float32)
    first = tl.zeros([X, TILE], dtype=tl.float32)
    second = tl.zeros([X, TILE], dtype=tl.float32)
    low = tl.min(begin, axis=0)
    high = tl.maximum(tl.max(end, axis=0), low)
    span = tl.cdiv(tl.cdiv(high - low, Y), SPLITS) * Y
    low += split * span
    for start in range(low, tl.minimum(low + span, high), Y):
        keys = start + tl.arange(0, Y)
        key_ok = keys < num_keys
        key_offsets = keys[:, None].to(tl.int64) * STRIDE
        key, square = key_offsets, key_offsets
        if GRADIENT or CHUNK == 0:
            key = _tile(key_ptr, key_offsets, key_ok[:, None], columns)
            if NORMS == 1:
                square = _tile(square_ptr, key_offsets, key_ok[:, None], columns)
        s, n = _products(
            u, gate, u_ptr, gate_ptr, offsets, ok[:, None],
            key, square, key_ptr, square_ptr, key_offsets, key_ok[:, None],
            STRIDE, CHUNK, NORMS, PRECISION,
        )  # fmt: skip
        both_ok = ok[:, None] & key_ok[None, :]
        inverse = _inverse_norms(n, table_ptr, pair_rows[:, None], keys[None, :], both_ok, num_keys, NORMS)
        cosines = s * inverse
        positive = (keys[None, :] >= begin[:, None]) & (keys[None, :] < end[:, None])
        if SELF:
            positive = positive & (keys[None, :] != selves[:, None])
        margin = lse[:, None] - cosines * scale
        e = tl.exp2(-tl.abs(margin))
        log1p = tl.where(e < 1e-3, e * (1.0 - 0.5 * e) * _LOG2E, tl.log2(1.0 + e))
        value += tl.sum(tl.where(positive, tl.maximum(margin, 0.0) + log1p, 0.0), axis=1)
        if GRADIENT:
            a = tl.where(positive, tl.where(margin >= 0.0, 1.0, e) / (1.0 + e), 0.0)
            share += tl.sum(a, axis=1)
            pull += tl.sum(a * cosines, axis=1)
            a *= inverse
            first = tl.dot(a.to(key.dtype), key, first, input_precision=PRECISION)
            if NORMS == 1:
                a *= inverse * cosines
                second = tl.dot(a.to(key.dtype), square, second, input_precision=PRECISION)
    places = split.to(tl.int64) * num_anchors + rows
    if part == 0:
        tl.store(value_ptr + places, value, mask=ok)
        if GRADIENT:
            tl.store(share_ptr + places, share, mask=ok)
            tl.store(pull_ptr + places, pull, mask=ok)
            if split == 0:
                tl.store(lse_ptr + rows, lse, mask=ok)
                tl.store(negative_mean_ptr + rows, negative_mean, mask=ok)
    if GRADIENT:
        sums = places[:, None] * STRIDE + columns[None, :]
        if ADD:
            first += tl.load(first_ptr + sums, mask=ok[:, None], other=0.0)
        tl.store(first_ptr + sums, first, mask=ok[:, None])
        if NORMS == 1:
            if ADD:
                second += tl.load(second_ptr + sums, mask=ok[:, None], other=0.0)
            tl.store(second_ptr + sums, second, mask=ok[:, None])


@triton.jit(do_not_specialize=["num_anchors", "num_keys", "span"])
def key_sums(
    u_ptr,
    gate_ptr,
    key_ptr,
    square_ptr,
    table_ptr,
    pair_row_ptr,
    own_ptr,
    pair_ptr,
    code_ptr,
    self_ptr,
    scale_ptr,
    lse_ptr,
    share_ptr,
    first_ptr,
    second_ptr,
    num_anchors,
    num_keys,
    span,
    X: tl.constexpr,
    Y: tl.constexpr,
    STRIDE: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    NORMS: tl.constexpr,
    PAIRS: tl.constexpr,
    SELF: tl.constexpr,
    EITHER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of keys past the `span` anchors of its split; sums [splits, N, STRIDE].

    With NORMS = 2 `second` is [splits, N, PAIRS], the sums of d_ik c / |g k|^2 over the anchors of each pair.
    """
    block, part, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    keys = block * X + tl.arange(0, X)
    key_ok = keys < num_keys
    key_offsets = keys[:, None].to(tl.int64) * STRIDE
    columns = part * TILE + tl.arange(0, TILE)
    key, square = key_offsets, key_offsets
    if CHUNK == 0:
        key = _tile(key_ptr, key_offsets, key_ok[:, None], columns)
        if NORMS == 1:
            square = _tile(square_ptr, key_offsets, key_ok[:, None], columns)
    code = tl.load(code_ptr + keys, mask=key_ok, other=-2)[:, None]
    scale = tl.load(scale_ptr)
    first = tl.zeros([X, TILE], dtype=tl.float32)
    second = tl.zeros([X, PAIRS if NORMS == 2 else TILE], dtype=tl.float32)
    begin = split * span
    for start in range(begin, tl.minimum(begin + span, num_anchors), Y):
        rows = start + tl.arange(0, Y)
        ok = rows < num_anchors
        offsets = rows[:, None].to(tl.int64) * STRIDE
        u = _tile(u_ptr, offsets, ok[:, None], columns)
        gate = u
        if NORMS == 1:
            gate = _tile(gate_ptr, offsets, ok[:, None], columns)
        s, n = _products(
            key, square, key_ptr, square_ptr, key_offsets, key_ok[:, None],
            u, gate, u_ptr, gate_ptr, offsets, ok[:, None],
            STRIDE, CHUNK, NORMS, PRECISION,
        )  # fmt: skip
        pair_rows = rows
        if NORMS == 2:
            pair_rows = tl.load(pair_row_ptr + rows, mask=ok, other=PAIRS)
        both_ok = key_ok[:, None] & ok[None, :]
        inverse = _inverse_norms(n, table_ptr, pair_rows[None, :], keys[:, None], both_ok, num_keys, NORMS)
        cosines = s * inverse
        own = tl.load(own_ptr + rows, mask=ok, other=-1)[None, :]
        pair = tl.load(pair_ptr + rows, mask=ok, other=-1)[None, :]
        lse = tl.load(lse_ptr + rows, mask=ok, other=float("inf"))[None, :]
        share = tl.load(share_ptr + rows, mask=ok, other=0.0)[None, :]
        e = tl.exp2(cosines * scale - lse)
        is_pair = code == pair
        is_own = code == own
        positive = is_pair
        if EITHER:
            positive = is_pair | is_own
        if SELF:
            selves = tl.load(self_ptr + rows, mask=ok, other=-1)
            positive = positive & (keys[:, None] != selves[None, :])
        d = tl.where(is_pair | is_own, tl.where(positive, 1.0 / (1.0 + e), 0.0), -share * e)
        d *= inverse
        first = tl.dot(d.to(u.dtype), u, first, input_precision=PRECISION)
        if NORMS > 0:
            d *= inverse * cosines
        if NORMS == 1:
            second = tl.dot(d.to(u.dtype), gate, second, input_precision=PRECISION)
        if NORMS == 2:
            of_pair = (pair_rows[:, None] == tl.arange(0, PAIRS)[None, :]).to(tl.float32).to(u.dtype)
            second = tl.dot(d.to(u.dtype), of_pair, second, input_precision=PRECISION)
    places = (split.to(tl.int64) * num_keys + keys)[:, None]
    tl.store(first_ptr + places * STRIDE + columns[None, :], first, mask=key_ok[:, None])
    if NORMS == 1:
        tl.store(second_ptr + places * STRIDE + columns[None, :], second, mask=key_ok[:, None])
    if NORMS == 2:  # noqa: SIM102 (the first is decided when compiling)
        if part == 0:
            tl.store(second_ptr + places * PAIRS + tl.arange(0, PAIRS)[None, :], second, mask=key_ok[:, None])
