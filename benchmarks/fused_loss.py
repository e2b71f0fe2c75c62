"""The fused subspace InfoNCE on a GPU: time and memory against the compiled two-product form, rate against a matrix product.

    python benchmarks/fused_loss.py --device cuda [--dim 256] [--classes 10]

Forward and backward, bf16 vectors. `fused` and `compiled` are forms of `simlap.losses.subspace_info_nce`, the first called
with precision bf16; the second runs under torch's own setting of the same (`float32_matmul_precision` medium), since it works
in float32. Twice: a gate for each anchor, and one for each unordered class pair (with --classes 10 there are 55). B = N.

Time: CUDA events around a few calls in a row (`time`: with what Python and the launches cost) and around replays of a CUDA
graph of one call (`graph`: the device's own), both forms in turn, medians. Memory: the allocator's peak over what is there
before the call (inputs). Rate: 8 products of 2 B N D operations, whatever a form really does, over the graph's time where
there is one; beside it that of a bf16 product [8192, 8192]^2 in the same run. `compiled` stops at B = 32,768 (its [B, N]
buffers of 69 GB each do not fit at 131,072). The table also goes to
benchmarks/results/fused-loss-cuda.json. Without an NVIDIA GPU there is nothing to measure.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from simlap.losses import count_positives, subspace_info_nce
from simlap.losses.forms.fused import fused_available, fused_subspace_info_nce
from simlap.record.provenance import collect

RESULTS = Path(__file__).parent / "results" / "fused-loss-cuda.json"
TEMPERATURE = 0.1
ROUNDS = 5
COMPILED_UP_TO = 32768
TARGETS = {4096: 2.0, 32768: 3.0}  # issue 4: times faster than compiled


def inputs(size: int, dim: int, classes: int, shared: bool) -> dict[str, Any]:
    """bf16 vectors that want gradients, labels, and an index where gates are shared by class pair."""
    generator = torch.Generator("cuda").manual_seed(0)
    options: dict[str, Any] = {"device": "cuda", "generator": generator}
    labels = torch.randint(classes, (size,), **options)
    pair_labels = labels[torch.randperm(size, **options)]
    low, high = torch.minimum(labels, pair_labels), torch.maximum(labels, pair_labels)
    pairs = classes * (classes + 1) // 2
    half = {**options, "dtype": torch.bfloat16}
    vectors = {
        "z": torch.randn(size, dim, **half),
        "keys": torch.randn(size, dim, **half),
        "gates": torch.rand(pairs if shared else size, dim, **half),
    }
    return {
        **{name: v.requires_grad_() for name, v in vectors.items()},
        "labels": labels,
        "pair_labels": pair_labels,
        "key_labels": labels,
        "gate_index": high * (high + 1) // 2 + low if shared else None,
    }


def fused(a: dict[str, Any], count: Tensor) -> Tensor:
    return fused_subspace_info_nce(
        **a,
        temperature=TEMPERATURE,
        cosine=True,
        either=False,
        self_index=None,
        weight=count.double().reciprocal(),
        precision="bf16",
    )


def compiled(a: dict[str, Any], count: Tensor) -> Tensor:
    return subspace_info_nce(**a, temperature=TEMPERATURE, num_positives=count, form="compiled")


FORMS: dict[str, Callable[[dict[str, Any], Tensor], Tensor]] = {"fused": fused, "compiled": compiled}


def step(form: str, a: dict[str, Any], count: Tensor) -> Tensor:
    """Loss; gradients are made and let go."""
    loss = FORMS[form](a, count)
    torch.autograd.grad(loss, [a["z"], a["keys"], a["gates"]])
    return loss.detach()


def milliseconds(work: Callable[[], object], calls: int) -> float:
    """Of one call, over several in a row, by the device's clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / calls


def capture(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """One call as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def measure(size: int, dim: int, classes: int, shared: bool, graphs: bool) -> list[dict[str, Any]]:
    """A row for each form."""
    a = inputs(size, dim, classes, shared)
    count = count_positives(a["labels"], a["pair_labels"], a["key_labels"])
    forms = list(FORMS) if size <= COMPILED_UP_TO else ["fused"]
    rows: list[dict[str, Any]] = []
    works: dict[str, Callable[[], object]] = {}
    replays: dict[str, Callable[[], object]] = {}
    for form in forms:
        work = functools.partial(step, form, a, count)
        loss = work().item()  # compiles
        work()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        works[form] = work
        rows.append(
            {
                "form": form,
                "size": size,
                "gates": "shared" if shared else "own",
                "loss": loss,
                "extra_bytes": torch.cuda.max_memory_allocated() - before,
                "total_bytes": torch.cuda.max_memory_allocated(),
            }
        )
        if graphs and size <= 4096:  # beyond, launches no longer count
            replays[form] = capture(work).replay
    calls = max(1, 2**26 // size**2 * 4)
    timed: dict[str, list[float]] = {form: [] for form in forms}
    replayed: dict[str, list[float]] = {form: [] for form in replays}
    for _ in range(ROUNDS):
        for form in forms:
            timed[form].append(milliseconds(works[form], calls))
            if form in replays:
                replayed[form].append(milliseconds(replays[form], calls))
    for row in rows:
        row["ms"] = statistics.median(timed[row["form"]])
        row["graph_ms"] = statistics.median(replayed[row["form"]]) if row["form"] in replayed else None
        operations = 8 * 2 * size**2 * dim
        row["rate"] = operations / (row["graph_ms"] or row["ms"]) / 1e9  # TFLOP/s
    return rows


def matrix_rate() -> float:
    """TFLOP/s of a bf16 product of random matrices."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    work = functools.partial(torch.matmul, a, b)
    milliseconds(work, 20)
    return 2 * size**3 / statistics.median(milliseconds(work, 20) for _ in range(ROUNDS)) / 1e9


def main() -> None:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda"])
    parser.add_argument("--dim", type=int, default=256, help="D")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 32768, 131072], help="B = N")
    parser.add_argument("--no-graphs", action="store_true", help="without the CUDA graphs")
    arguments = parser.parse_args()
    if not fused_available(arguments.device):
        print(
            "benchmarks/fused_loss.py: not measured, there is no NVIDIA GPU with Triton here (capability 8.0 or newer)"
        )
        return
    torch.set_float32_matmul_precision("medium")
    rate = matrix_rate()
    rows: list[dict[str, Any]] = []
    for size in arguments.sizes:
        for shared in (False, True):
            rows += measure(size, arguments.dim, arguments.classes, shared, not arguments.no_graphs)
            torch.cuda.empty_cache()
    table = Table(
        title=f"subspace InfoNCE on {torch.cuda.get_device_name()}, forward + backward, D = {arguments.dim}, bf16"
    )
    for column in ("B = N", "gates", "form", "time", "graph", "x", "memory", "x", "of matmul", "loss"):
        table.add_column(column, justify="left" if column in ("gates", "form") else "right")
    for row in rows:
        same = (r for r in rows if (r["size"], r["gates"], r["form"]) == (row["size"], row["gates"], "fused"))
        ours = next(same)
        row["time_ratio"] = (row["graph_ms"] or row["ms"]) / (ours["graph_ms"] or ours["ms"])
        row["memory_ratio"] = row["extra_bytes"] / ours["extra_bytes"]
        row["of_matmul"] = row["rate"] / rate
        table.add_row(
            f"{row['size']:,}",
            row["gates"],
            row["form"],
            f"{row['ms']:.3f} ms",
            f"{row['graph_ms']:.3f} ms" if row["graph_ms"] else "",
            f"{row['time_ratio']:.2f}",
            f"{row['extra_bytes'] / 2**20:,.0f} MiB",
            f"{row['memory_ratio']:.1f}",
            f"{row['of_matmul']:.0%}",
            f"{row['loss']:.5f}",
        )
    Console().print(table)
    wanted = ", ".join(f"{size:,}: {ratio:g}" for size, ratio in TARGETS.items())
    print(f"bf16 matrix product: {rate:.0f} TFLOP/s. Wanted of compiled / fused: {wanted}; of the matrix rate: 40 %")
    RESULTS.parent.mkdir(exist_ok=True)
    facts = {**collect(), "device": torch.cuda.get_device_name(), "matmul_tflops": rate}
    figures = {"dim": arguments.dim, "classes": arguments.classes, "rows": rows}
    RESULTS.write_text(json.dumps({"machine": facts, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
