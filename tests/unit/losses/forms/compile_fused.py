# mypy: disable-error-code="import-untyped"
"""Compiles the fused loss's kernels to machine code for an H100 or H200, which needs Triton's assembler but no GPU.

python tests/unit/losses/forms/compile_fused.py [precision ...]
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from simlap.losses.forms import fused_kernels, fused_rows
from simlap.losses.forms.fused_plan import Norms, Plan, Precision, choose_plan

SHARED_MEMORY = 227 * 1024
INTEGERS = {"num_anchors", "num_keys", "span"}
INT64 = {"pair_row_ptr", "order_ptr", "self_ptr", "gate_index_ptr", "bounds_ptr"}
INT32 = {"own_ptr", "pair_ptr", "code_ptr", "begin_ptr", "end_ptr"}
OPERANDS = {"u_ptr", "gate_ptr", "key_ptr", "square_ptr"}


class Compiled(NamedTuple):
    shared: int  # bytes of shared memory a program takes
    registers: int  # of a thread
    spilled: int  # bytes of a thread's registers that went to memory
    wgmma: int  # instructions of Hopper's matrix unit


def compile_kernel(kernel: Any, constants: dict[str, Any], half: bool, warps: int = 4, stages: int = 2) -> Compiled:
    """Machine code of one kernel for sm_90."""

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in INTEGERS:
            return "i32"
        if name in INT64:
            return "*i64"
        if name in INT32:
            return "*i32"
        return "*bf16" if half and name in OPERANDS else "*fp32"

    signature = {name: kind(name) for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t.startswith("*")}
    source = ASTSource(
        fn=kernel, signature=signature, constexprs={k: constants[k] for k in signature if k in constants}, attrs=aligned
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about defaults of a later Triton
        built = triton.compile(
            source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": stages}
        )
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|LOCAL|STACK):(\d+)", usage)}
    wgmma = built.asm["ptx"].count("wgmma.mma_async")
    return Compiled(built.metadata.shared, found["REG"], found["LOCAL"] + found["STACK"], wgmma)


def sweeps(plan: Plan, norms: Norms, precision: Precision, pairs: int = 64) -> dict[str, Compiled]:
    """The three sweeps with gradients."""
    number = ("none", "products", "table").index(norms)
    common = {
        "X": plan.x, "Y": plan.y, "STRIDE": plan.stride, "TILE": plan.tile, "CHUNK": plan.chunk, "NORMS": number,
        "PRECISION": "ieee" if precision == "bf16" else precision,
    }  # fmt: skip
    own: dict[Any, dict[str, Any]] = {
        fused_kernels.negatives: {"GRADIENT": True},
        fused_kernels.positives: {"GRADIENT": True, "SELF": True, "ADD": False, "SPLITS": 2},
        fused_kernels.key_sums: {"PAIRS": pairs, "SELF": True, "EITHER": False},
    }
    return {
        kernel.__name__: compile_kernel(kernel, {**common, **constants}, precision == "bf16", plan.warps, plan.stages)
        for kernel, constants in own.items()
    }


def rows(dim: int, cosine: bool) -> dict[str, Compiled]:
    """The kernels that work by rows."""
    width = max(16, 2 ** (dim - 1).bit_length())
    common = {"D": dim, "ROWS": max(1, 2048 // width), "WIDTH": width, "STRIDE": width, "COSINE": cosine}
    indexed = {**common, "INDEXED": True, "SQUARES": cosine}
    return {
        "anchor_operands": compile_kernel(fused_rows.anchor_operands, indexed, True),
        "anchor_gradients": compile_kernel(fused_rows.anchor_gradients, {**indexed, "SPLITS": 2}, True),
        "key_operands": compile_kernel(fused_rows.key_operands, common, True),
        "key_gradients": compile_kernel(fused_rows.key_gradients, {**common, "SPLITS": 2, "SECOND_SPLITS": 2}, True),
        "segment_sums": compile_kernel(fused_rows.segment_sums, {"D": dim, "ROWS": 64, "COLUMNS": 64}, True),
    }


def main() -> None:
    """A line for each kernel."""
    precisions: list[Any] = sys.argv[1:] or ["bf16", "tf32", "ieee"]
    norms_kinds: tuple[Norms, ...] = ("none", "products", "table")
    for dim in (64, 128, 256, 512):
        for precision in precisions:
            for norms in norms_kinds:
                plan = choose_plan(dim, precision, norms, SHARED_MEMORY)
                print(dim, precision, norms, plan, flush=True)
                for name, figures in sweeps(plan, norms, precision).items():
                    print("   ", name, figures, flush=True)


if __name__ == "__main__":
    main()
