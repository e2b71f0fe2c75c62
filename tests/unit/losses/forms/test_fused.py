"""The fused form: its kernels by Triton's interpreter, by Triton's compiler, and on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from simlap.losses import count_positives, subspace_info_nce
from simlap.losses.forms.fused import fused_available, fused_subspace_info_nce
from simlap.losses.forms.fused_plan import TABLE_PAIRS, Norms, Precision, choose_plan, choose_precision, choose_splits

HOPPER = 227 * 1024
HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton")
needs_gpu = pytest.mark.skipif(not fused_available("cuda"), reason="no NVIDIA GPU of capability 8.0 or newer")


@pytest.mark.slow
@needs_triton
@pytest.mark.timeout(900)  # on a crowded machine
def test_interpreted() -> None:
    """fused_interpreted.py, which compares value and gradients with the naive float64 loop."""
    tests = str(HERE / "fused_interpreted.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", tests]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        command, env={**environment, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, cwd=HERE.parents[3]
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize(
    ("dim", "norms", "precision"), [(64, "products", "bf16"), (256, "table", "bf16"), (128, "none", "tf32")]
)
def test_compiles_for_hopper(dim: int, norms: Norms, precision: Precision) -> None:
    """To machine code that fits an H100's multiprocessor and uses its matrix unit."""
    compiler = load_compiler()
    for name, kernel in compiler.sweeps(choose_plan(dim, precision, norms, HOPPER), norms, precision).items():
        assert kernel.shared <= HOPPER, (name, kernel)
        assert kernel.wgmma > 0 or precision != "bf16", (name, kernel)


@pytest.mark.slow
@needs_triton
def test_row_kernels_compile() -> None:
    compiler = load_compiler()
    for kernel in compiler.rows(256, cosine=True).values():
        assert kernel.spilled < 64
        assert kernel.shared <= 48 * 1024


def load_compiler() -> ModuleType:
    """compile_fused.py, which imports Triton."""
    spec = importlib.util.spec_from_file_location("compile_fused", HERE / "compile_fused.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["compile_fused"] = module
    spec.loader.exec_module(module)
    return module


def arguments(
    device: str = "cpu", dtype: torch.dtype = torch.float32, b: int = 6, n: int = 8, d: int = 5
) -> dict[str, Any]:
    labels = torch.arange(b, device=device) % 3
    return {
        "z": torch.randn(b, d, device=device, dtype=dtype),
        "keys": torch.randn(n, d, device=device, dtype=dtype),
        "gates": torch.rand(b, d, device=device, dtype=dtype),
        "labels": labels,
        "pair_labels": labels.roll(1),
        "key_labels": torch.arange(n, device=device) % 3,
    }


def call(a: dict[str, Any]) -> Tensor:
    return fused_subspace_info_nce(
        **a, gate_index=None, temperature=0.1, cosine=True, either=False, self_index=None, weight=torch.tensor(0.1)
    )


def test_says_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not fused_available("cpu")
    with pytest.raises(ValueError, match=r"NVIDIA GPU.*not cpu"):
        call(arguments())
    with pytest.raises(ValueError, match="must not be float64"):
        call(arguments(dtype=torch.float64))


def test_precision_follows_dtype_and_torchs_setting() -> None:
    half, single = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1)
    before = torch.get_float32_matmul_precision()
    try:
        for setting, expected in (("highest", "ieee"), ("high", "tf32"), ("medium", "bf16")):
            torch.set_float32_matmul_precision(setting)
            assert choose_precision(single, half) == expected
            assert choose_precision(half, half.half()) == "bf16"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("shared_memory", [99 * 1024, 163 * 1024, HOPPER])
def test_plans(shared_memory: int) -> None:
    """Columns are covered, and sizes are what the kernels take."""
    precisions: tuple[Precision, ...] = ("bf16", "tf32", "ieee")
    norms_kinds: tuple[Norms, ...] = ("none", "products", "table")
    for dim in (1, 16, 17, 64, 100, 128, 256, 257, 384, 768, 1024):
        for precision in precisions:
            for norms in norms_kinds:
                plan = choose_plan(dim, precision, norms, shared_memory)
                assert plan.stride >= dim
                assert plan.stride % plan.tile == 0
                assert plan.chunk or plan.tile == plan.stride
                assert not plan.chunk or plan.stride % plan.chunk == 0
                assert all(
                    size >= 16 and size & (size - 1) == 0 for size in (plan.x, plan.y, plan.tile, plan.chunk or 16)
                )


def test_splits_fill_the_device_and_no_more() -> None:
    plan = choose_plan(256, "bf16", "products", HOPPER)
    assert choose_splits(4096, 4096, plan, 132) == 2
    assert choose_splits(131072, 131072, plan, 132) == 1
    assert choose_splits(1, 100, plan, 132) == 2  # no more than there are streamed blocks


@needs_gpu
@pytest.mark.parametrize("gates", ["own", "shared"])
@pytest.mark.parametrize("similarity", ["cosine", "masked_dot"])
@pytest.mark.parametrize("dim", [20, 128, 256, 384, 1024])
@pytest.mark.parametrize(("precision", "tolerance"), [("ieee", 1e-4), ("tf32", 5e-3), ("bf16", 3e-2)])
def test_on_the_gpu(gates: str, similarity: Any, dim: int, precision: Precision, tolerance: float) -> None:
    """Value and gradients against the plain form in float64; twice the same bits."""
    b, n, pairs = 333, 501, 55
    torch.manual_seed(0)
    a = arguments("cuda", b=b, n=n, d=dim)
    index = torch.randint(pairs, (b,), device="cuda") if gates == "shared" else None
    if index is not None:
        a["gates"] = a["gates"][:pairs]
    a["key_labels"] = torch.randint(5, (n,), device="cuda")
    names = ("z", "keys", "gates")
    wide = {k: v.double().requires_grad_() if k in names else v for k, v in a.items()}
    expected = subspace_info_nce(**wide, gate_index=index, similarity=similarity, form="plain")
    expected_gradients = torch.autograd.grad(expected, [wide[k] for k in names])
    a = {k: v.requires_grad_() if k in names else v for k, v in a.items()}
    weight = 1.0 / count_positives(a["labels"], a["pair_labels"], a["key_labels"]).double()
    options: dict[str, Any] = {
        "gate_index": index,
        "temperature": 0.1,
        "either": False,
        "self_index": None,
        "weight": weight,
    }
    runs = []
    for _ in range(2):
        loss = fused_subspace_info_nce(**a, **options, cosine=similarity == "cosine", precision=precision)
        runs.append((loss, *torch.autograd.grad(loss, [a[k] for k in names])))
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))
    for found, wanted in zip(runs[0], (expected, *expected_gradients), strict=True):
        assert (found.double() - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_table_bound_fits_its_padding() -> None:
    assert TABLE_PAIRS & (TABLE_PAIRS - 1) == 0
