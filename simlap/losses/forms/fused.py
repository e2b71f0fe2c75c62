"""The subspace InfoNCE on CUDA without any B x N buffer: memory grows with B + N (docs/method.md, steps 3 to 5).

Value and gradients are made in one go, as in `simlap.losses.subspace_info_nce`, by sweeps of Triton kernels:

    negatives  online log-sum-exp; the anchors' gradient from negatives, but for the factor A_i = sum_j a_ij
    positives  the value, A_i, and the anchors' gradient from positives; reads only the keys of the anchors' classes
    keys       the keys' gradient, anchors streaming past

With f the share of keys that a positive sweep reads, that is 8 + 4 f products of 2 B N D operations for the cosine (the
norms are products too), 4 + 2 f for the masked dot, and 4 + 2 f + U / D for the cosine where at most 128 distinct gates
serve all anchors. Keys are sorted by class for that. No atomics, so results repeat bit by bit on one device.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simlap.losses.forms.fused_plan import TABLE_PAIRS, Plan, Precision, choose_plan, choose_precision, choose_splits
from simlap.losses.unit import unit_max

_INTERPRETER_SHARED_MEMORY = 227 * 1024


def fused_available(device: torch.device | str) -> bool:
    """Whether the kernels run there: Triton, and an NVIDIA GPU of compute capability 8.0 (Ampere) or newer."""
    device = torch.device(device)
    if device.type != "cuda" or torch.version.hip or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)


def fused_subspace_info_nce(
    z: Tensor,
    keys: Tensor,
    gates: Tensor,
    labels: Tensor,
    pair_labels: Tensor,
    key_labels: Tensor,
    *,
    gate_index: Tensor | None,
    temperature: float | Tensor,
    cosine: bool,
    either: bool,
    self_index: Tensor | None,
    weight: Tensor,
    precision: Precision | None = None,
    plan: Plan | None = None,
    splits: int | None = None,
) -> Tensor:
    """As `simlap.losses.subspace_info_nce`, whose arguments it takes; it does not check them.

    Args:
        z: [B, D] anchors; keys: [N, D]; gates: [B, D], or [U, D] with `gate_index`. Not float64.
        labels: [B]; pair_labels: [B]; key_labels: [N]; all int.
        gate_index: [B] int64 or None: anchor i has gate gates[gate_index[i]].
        temperature: number or scalar tensor (which gets its gradient).
        cosine: in the subspace, else the masked dot.
        either: positives of the anchor's own class too.
        self_index: [B] int64 or None: each anchor's own column, no positive.
        weight: scalar, 1 / (number of positives), or 0.
        precision: of the factors of the products; None: `choose_precision(z, keys)`. Sums are float32.
        plan: tile sizes; None: by `choose_plan`.
        splits: of the streamed rows; None: by `choose_splits`.

    Returns:
        Scalar float32. Gradients come back in their input's dtype, made from float32. First derivatives only.

    Raises:
        ValueError: float64, or a device without the kernels.
    """
    inputs = [z, keys, gates, *([temperature] if isinstance(temperature, Tensor) else [])]
    if any(x.dtype == torch.float64 for x in inputs[:3]):
        raise ValueError("the fused form computes in float32: z, keys and gates must not be float64")
    if not fused_available(z.device) and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"the fused form needs Triton and an NVIDIA GPU (compute capability 8.0 or newer), not {z.device}"
        )
    with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    options = _Options(cosine, either, precision or choose_precision(z, keys), plan, splits)
    labelling = (labels, pair_labels, key_labels, self_index)
    loss: Tensor = _Fused.apply(z, keys, gates, temperature, gate_index, labelling, weight, options, with_gradient)
    return loss


class _Options(NamedTuple):
    cosine: bool
    either: bool
    precision: Precision
    plan: Plan | None
    splits: int | None


class _Fused(torch.autograd.Function):
    """Value and gradients in one go; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        keys: Tensor,
        gates: Tensor,
        temperature: float | Tensor,
        gate_index: Tensor | None,
        labelling: tuple[Tensor, Tensor, Tensor, Tensor | None],
        weight: Tensor,
        options: _Options,
        with_gradient: bool,
    ) -> Tensor:
        if not isinstance(temperature, Tensor):  # filled on the device: a copy to it would wait
            temperature = torch.full((), temperature, dtype=torch.float32, device=z.device)
        inverse = temperature.to(z.device, torch.float32).reciprocal()
        weight = weight.to(z.device, torch.float32)
        with torch.cuda.device_of(z), torch.autocast(z.device.type, enabled=False):
            total, *gradients = _compute(
                z, keys, gates, gate_index, labelling, inverse, inverse * weight, options, with_gradient
            )
        if with_gradient:
            gradients[3] = gradients[3] * (-inverse.square() * weight)
            ctx.save_for_backward(*gradients)
            ctx.inputs = [(x.dtype, x.device) for x in (z, keys, gates, temperature)]
        return total * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        scaled: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for i, (dtype, device) in enumerate(ctx.inputs):
            if ctx.needs_input_grad[i]:
                scaled[i] = (ctx.saved_tensors[i] * grad_output).to(device, dtype)
        return tuple(scaled)


class _Order(NamedTuple):
    """Keys sorted by class, and where in that order each anchor's classes begin and end (N and 0: no such key)."""

    keys: Tensor  # [N] int64, the keys in order
    code: Tensor  # [N] int32, a key's class: the first place in the order that has it
    begin: Tensor  # [2, B] int32: of the pair classes, of the own classes
    end: Tensor  # [2, B] int32
    self_place: Tensor | None  # [B] int64

    @classmethod
    def make(cls, labels: Tensor, pair_labels: Tensor, key_labels: Tensor, self_index: Tensor | None) -> _Order:
        ordered, keys = key_labels.sort(stable=True)
        code = torch.searchsorted(ordered, ordered, out_int32=True)
        classes = torch.stack([pair_labels, labels]).to(ordered.dtype)
        begin = torch.searchsorted(ordered, classes, out_int32=True)
        end = torch.searchsorted(ordered, classes, out_int32=True, right=True)
        absent = begin == end
        begin, end = begin.masked_fill_(absent, len(ordered)), end.masked_fill_(absent, 0)
        self_place = None
        if self_index is not None:
            places = torch.empty_like(keys)
            places[keys] = torch.arange(len(keys), device=keys.device)
            self_place = places[self_index]
        return cls(keys, code, begin, end, self_place)


def _compute(
    z: Tensor,
    keys: Tensor,
    gates: Tensor,
    gate_index: Tensor | None,
    labelling: tuple[Tensor, Tensor, Tensor, Tensor | None],
    inverse: Tensor,
    factor: Tensor,
    options: _Options,
    with_gradient: bool,
) -> tuple[Tensor, ...]:
    """The sum over positives; with gradients also those in z, keys, gates (times weight) and the sum of d c."""
    from simlap.losses.forms import fused_kernels as sweeps
    from simlap.losses.forms import fused_rows as by_row

    z, keys, gates = z.contiguous(), keys.contiguous(), gates.contiguous()
    (b, dim), n, device = z.shape, len(keys), z.device
    cosine, either, precision, plan, splits = options
    if b == 0:
        return z.new_zeros((), dtype=torch.float32), *(torch.zeros_like(x) for x in (z, keys, gates, factor))
    table = cosine and gate_index is not None and len(gates) <= TABLE_PAIRS and len(gates) * n < 2**31
    norms = 0 if not cosine else 2 if table else 1
    shared_memory, programs = _device_limits(device)
    plan = plan or choose_plan(dim, precision, ("none", "products", "table")[norms], shared_memory)
    order = _Order.make(*labelling)

    # operands: rows of unit size, in the dtype of the products
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    width = 2 ** (plan.stride - 1).bit_length()
    rows = max(1, 2048 // width)
    row_options = {"D": dim, "ROWS": rows, "WIDTH": width, "STRIDE": plan.stride, "COSINE": cosine}
    indexed = {"INDEXED": gate_index is not None}
    u = torch.empty(b, plan.stride, dtype=dtype, device=device)
    squared_gates = torch.empty_like(u) if norms == 1 else u
    unit_keys = torch.empty(n, plan.stride, dtype=dtype, device=device)
    squared_keys = torch.empty_like(unit_keys, dtype=torch.float32 if table else dtype) if cosine else unit_keys
    gate_rows = gate_index if gate_index is not None else order.keys  # a pointer that is not read where not indexed
    by_anchor, by_key = (-(-b // rows),), (-(-n // rows),)
    by_row.anchor_operands[by_anchor](
        z, gates, gate_rows, u, squared_gates, b, **row_options, **indexed, SQUARES=norms == 1
    )
    by_row.key_operands[by_key](keys, order.keys, unit_keys, squared_keys, n, **row_options)
    inverse_norms = u  # not read
    if table:
        unit_gates, gates_scale = unit_max(gates.float())
        pair_squares = torch.nn.functional.pad(unit_gates.square(), (0, plan.stride - dim))  # [U, STRIDE]
        inverse_norms = pair_squares @ squared_keys.T  # [U, N]
        dead = inverse_norms < torch.finfo(torch.float32).tiny ** 0.75
        inverse_norms.rsqrt_().masked_fill_(dead, 0.0)

    # sweeps
    tiles = plan.stride // plan.tile if with_gradient else 1
    blocks, key_blocks = -(-b // plan.x), -(-n // plan.x)
    parts = splits or choose_splits(b, n, plan, programs)
    key_parts = splits or choose_splits(n, b, plan, programs)
    span, key_span = (-(-count // (k * plan.y)) * plan.y for count, k in ((n, parts), (b, key_parts)))
    scale = inverse * 1.4426950408889634  # log2(e)
    empty = functools.partial(torch.empty, device=device, dtype=torch.float32)
    largest, mass, mean = empty(3, parts, b)
    lse, negative_mean = empty(2, b)
    classes = 2 if either else 1
    value, share, pull = empty(3, classes * parts, b)
    sums = [empty(parts, b, plan.stride) if wanted else u for wanted in _wanted(with_gradient, norms)]
    operands = (u, squared_gates, unit_keys, squared_keys, inverse_norms, gate_rows)
    options_of = {
        "X": plan.x,
        "Y": plan.y,
        "STRIDE": plan.stride,
        "TILE": plan.tile,
        "CHUNK": plan.chunk,
        "NORMS": norms,
        "PRECISION": "ieee" if precision == "bf16" else precision,  # says nothing about bf16 factors
        "num_warps": plan.warps,
        "num_stages": plan.stages,
    }
    sweeps.negatives[(blocks, tiles, parts)](
        *operands, order.begin[1], order.begin[0], order.code, scale, largest, mass, mean, sums[0], sums[1],
        b, n, span, **options_of, GRADIENT=with_gradient,
    )  # fmt: skip
    self_place = order.self_place if order.self_place is not None else order.keys
    with_self = {"SELF": order.self_place is not None}
    for k in range(classes):
        begin, end = order.begin[k], order.end[k]
        if k == 1:  # the own class, unless it is the pair's class and done already
            done = order.begin[0] == begin
            begin, end = begin.masked_fill(done, n), end.masked_fill(done, 0)
        entries = begin.argsort(stable=True)  # anchors of one class together: a block then reads few keys
        statistics = (x[k * parts : (k + 1) * parts] for x in (value, share, pull))
        sweeps.positives[(blocks, tiles, parts)](
            *operands, entries, begin, end, self_place, scale, largest, mass, mean, lse, negative_mean,
            *statistics, sums[2], sums[3], b, n, **options_of, GRADIENT=with_gradient, **with_self, ADD=k > 0, SPLITS=parts,
        )  # fmt: skip
    total = value.sum() * 0.6931471805599453  # ln 2
    if not with_gradient:
        return (total,)
    share, pull = share.sum(0), pull.sum(0)
    grad_z, each_gate = empty(b, dim), empty(b, dim)
    by_row.anchor_gradients[by_anchor](
        z, gates, gate_rows, largest, lse, share, *sums, factor, grad_z, each_gate, b,
        **row_options, **indexed, SQUARES=norms == 1, SPLITS=parts,
    )  # fmt: skip
    del sums, mean, mass
    key_first = empty(key_parts, n, plan.stride)
    pairs = max(16, 2 ** (len(gates) - 1).bit_length()) if table else 16
    key_second = empty(key_parts, n, pairs if table else plan.stride) if cosine else key_first
    sweeps.key_sums[(key_blocks, plan.stride // plan.tile, key_parts)](
        *operands, order.begin[1], order.begin[0], order.code, self_place, scale, lse, share, key_first, key_second,
        b, n, key_span, **options_of, **with_self, PAIRS=pairs, EITHER=either,
    )  # fmt: skip
    if gate_index is None:
        grad_gates = each_gate
    else:
        grad_gates = _sum_by_pair(each_gate, gate_index, len(gates))
    if table:
        of_pairs = key_second.sum(0)[:, : len(gates)]  # [N, U], sums of d c / |g k|^2
        by_square = (of_pairs.T @ squared_keys)[:, :dim]  # [U, D]
        grad_gates.add_(unit_gates * by_square * (gates_scale * factor))
        key_second = (of_pairs @ pair_squares)[None]  # [1, N, STRIDE]
    grad_keys = empty(n, dim)
    by_row.key_gradients[by_key](
        keys, order.keys, key_first, key_second, factor, grad_keys, n, **row_options,
        SPLITS=key_parts, SECOND_SPLITS=1 if table else key_parts,
    )  # fmt: skip
    return total, grad_z, grad_keys, grad_gates, (share * negative_mean - pull).sum()


def _wanted(with_gradient: bool, norms: int) -> tuple[bool, bool, bool, bool]:
    """Which of the sums are made: k and c k^2 over negatives, then over positives."""
    second = with_gradient and norms == 1
    return with_gradient, second, with_gradient, second


def _sum_by_pair(x: Tensor, gate_index: Tensor, pairs: int) -> Tensor:
    """Rows [B, D] of the same pair added up, [U, D]; torch's index_add would do so in a random order on CUDA."""
    from simlap.losses.forms import fused_rows as by_row

    ordered, order = gate_index.sort(stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(pairs + 1, device=x.device))
    dim = x.shape[1]
    sums = torch.empty(pairs, dim, device=x.device, dtype=torch.float32)
    by_row.segment_sums[(pairs, -(-dim // 64))](x, order, bounds, sums, D=dim, ROWS=64, COLUMNS=64)
    return sums


@functools.cache
def _device_limits(device: torch.device) -> tuple[int, int]:
    """Bytes of shared memory per program, and multiprocessors."""
    if device.type != "cuda":
        return _INTERPRETER_SHARED_MEMORY, 1
    properties = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin, properties.multi_processor_count
