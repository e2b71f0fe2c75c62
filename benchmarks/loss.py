"""The subspace InfoNCE, forward and backward: our forms against the same loss written plainly.

    python benchmarks/loss.py                  on the CPU, one thread
    python benchmarks/loss.py --device cuda    on a GPU, bf16 inputs

Comparisons: `two products` (the algebra of docs/method.md left to autograd, without our care for zero rows and extreme
values), the same through torch.compile, and `broadcast` (the definition, with its B x N x D tensors). Ours: `auto`, with a
gate for each anchor; `auto, pairs`, with the gates of the 55 unordered pairs of 10 classes; `plain` and `compiled`.

Time: forms take turns, call by call; the median of each; what is compared is processor time on the CPU (which depends less on
what else the machine does) and the device's own clock on a GPU. Memory on the CPU: the kernel's high-water mark of resident
memory during the first call of a fresh process, less the resident memory just before; on a GPU, what torch allocated at its
highest, less what was there. Tables also go to benchmarks/results/loss-<device>.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from simlap.losses import subspace_info_nce
from simlap.record.provenance import collect

TEMPERATURE, NUM_CLASSES, DIM = 0.1, 10, 256
RESULTS = Path(__file__).parent / "results"
BASE = "two products"
CPU_SIZES, CPU_GROWTH = (64, 128, 256, 1024), (4096, 16384)
CUDA_SIZES = (256, 1024, 4096, 32768, 131072)
CALLS = {64: 150, 128: 80, 256: 40, 1024: 9}
Form = Callable[..., Tensor]


def plain_nce(similarities: Tensor, labels: Tensor, pair_labels: Tensor, key_labels: Tensor) -> Tensor:
    """docs/method.md, steps 4 and 5, from similarities [B, N]."""
    logits = similarities / TEMPERATURE
    positive = key_labels[None] == pair_labels[:, None]
    negative = (key_labels[None] != labels[:, None]) & ~positive
    of_negatives = torch.logsumexp(logits.masked_fill(~negative, -math.inf), dim=1, keepdim=True)
    losses = torch.logaddexp(logits, of_negatives) - logits
    return losses.masked_fill(~positive, 0.0).sum() / positive.sum()


def broadcast(z: Tensor, keys: Tensor, gates: Tensor, index: Tensor, *labels: Tensor) -> Tensor:
    """The definition."""
    g, k = gates[index][:, None], keys[None]
    return plain_nce(F.cosine_similarity(g * z[:, None], g * k, dim=-1), *labels)


def two_products(z: Tensor, keys: Tensor, gates: Tensor, index: Tensor, *labels: Tensor) -> Tensor:
    """Two matrix products in the inputs' type, all else in float32, differentiated by autograd."""
    gates = gates[index]
    squared = gates.square()
    norms = (gates * z).float().norm(dim=1, keepdim=True) * (squared @ keys.square().T).float().sqrt()
    return plain_nce(((squared * z) @ keys.T).float() / norms, *labels)


def ours(form: str, pairs: bool) -> Form:
    """One of the library's forms."""

    def loss(z: Tensor, keys: Tensor, gates: Tensor, index: Tensor, *labels: Tensor) -> Tensor:
        options: dict[str, Any] = {"temperature": TEMPERATURE, "form": form}
        if pairs:
            return subspace_info_nce(z, keys, gates, *labels, gate_index=index, **options)
        return subspace_info_nce(z, keys, gates[index], *labels, **options)

    return loss


@functools.cache
def form_of(name: str) -> Form:
    """All forms take z, keys, the gates of the pairs, each anchor's pair, and the labels."""
    if name == f"{BASE}, compiled":
        return torch.compile(two_products)
    if name in (BASE, "broadcast"):
        return {BASE: two_products, "broadcast": broadcast}[name]
    form, _, pairs = name.partition(", ")
    return ours(form, bool(pairs))


def inputs(size: int, device: str) -> tuple[Tensor, ...]:
    """z, keys, gates (with gradient), the anchors' gates, labels, pair labels, key labels."""
    torch.manual_seed(0)
    labels = torch.randint(NUM_CLASSES, (size,))
    pair_labels = labels[torch.randperm(size)]
    ordered = torch.stack([torch.minimum(labels, pair_labels), torch.maximum(labels, pair_labels)])
    distinct, index = ordered.unique(dim=1, return_inverse=True)
    vectors = [torch.randn(size, DIM), torch.randn(size, DIM), torch.rand(distinct.shape[1], DIM)]
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    gradient = [v.to(device, dtype).requires_grad_() for v in vectors]
    return (*gradient, *(x.to(device) for x in (index, labels, pair_labels, labels)))


def step(form: Form, tensors: tuple[Tensor, ...]) -> Tensor:
    """Forward and backward."""
    for v in tensors[:3]:
        v.grad = None
    loss = form(*tensors)
    loss.backward()
    return loss.detach()


# --- CPU -------------------------------------------------------------------------------------------------------------


def processor_seconds(form: Form, tensors: tuple[Tensor, ...]) -> float:
    start = time.process_time()
    step(form, tensors)
    return time.process_time() - start


def times(names: Iterable[str], size: int) -> list[dict[str, Any]]:
    """Median processor seconds of forms that take turns."""
    tensors = inputs(size, "cpu")
    found: dict[str, list[float]] = {name: [] for name in names}
    losses = {name: step(form_of(name), tensors).item() for name in found}  # compiles, too
    for _ in range(CALLS[size]):
        for name, seconds in found.items():
            seconds.append(processor_seconds(form_of(name), tensors))
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    return [{"size": size, "form": name, "seconds": medians[name], "loss": losses[name]} for name in found]


def resident(field: str) -> int:
    """Bytes of resident memory: `VmRSS` now, `VmHWM` at its highest since the last reset (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def first_call(name: str, size: int) -> dict[str, Any]:
    """Extra bytes and processor seconds of a first call; meant for a fresh process."""
    form = form_of(name)
    for _ in range(3):
        step(form, inputs(32, "cpu"))  # libraries load and allocate on first use
    tensors = inputs(size, "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    seconds = processor_seconds(form, tensors)
    return {"form": name, "size": size, "extra_bytes": resident("VmHWM") - before, "seconds": seconds}


def in_fresh_process(place: tuple[str, int]) -> dict[str, Any]:
    options = ["--form", place[0], "--size", str(place[1])]
    done = subprocess.run([sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def on_cpu(console: Console) -> dict[str, Any]:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = []
    for size in CPU_SIZES:
        names = [BASE, "plain", "auto", "auto, pairs"]
        names += ["compiled"] if size == max(CPU_SIZES) else []  # compiling takes longer than all calls
        rows += times(names, size)
    largest = max(CPU_SIZES)
    alone = in_fresh_process(
        ("broadcast", largest)
    )  # who takes turns with it finds the caches empty and the memory returned
    rows.append({key: alone[key] for key in ("size", "form", "seconds")})
    with ThreadPoolExecutor(2) as pool:  # memory does not mind company
        places = [(name, largest) for name in (BASE, "auto", "auto, pairs")]
        places += [("auto, pairs", size) for size in reversed(CPU_GROWTH)]  # the longest first
        memory = [alone, *pool.map(in_fresh_process, places)]
    print_times(console, rows, "float32, one thread, processor time")
    reference = next(row["extra_bytes"] for row in memory if row["form"] == "auto" and row["size"] == largest)
    table = Table("B = N", "form", "extra memory", "x auto at 1,024", title="extra memory of a first call")
    for row in memory:
        bytes_ = row["extra_bytes"]
        table.add_row(f"{row['size']:,}", row["form"], f"{bytes_ / 2**20:,.1f} MiB", f"{bytes_ / reference:.1f}")
    console.print(table)
    large, small = (row["extra_bytes"] for row in memory[-2:])
    console.print(f"auto, pairs, from B = N = {CPU_GROWTH[0]:,} to {CPU_GROWTH[1]:,}: memory x{large / small:.2f}")
    return {"times": rows, "memory": memory, "growth": large / small}


# --- CUDA ------------------------------------------------------------------------------------------------------------


def device_seconds(call: Callable[[], Any], calls: int) -> float:
    """Median by the device's clock."""
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(calls)]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    milliseconds: float = statistics.median(start.elapsed_time(end) for start, end in events)
    return milliseconds / 1e3


def matrix_rate(side: int = 8192) -> float:
    """Operations per second of a large bf16 product."""
    square = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
    device_seconds(functools.partial(torch.mm, square, square), 10)  # clocks rise
    return 2 * side**3 / device_seconds(functools.partial(torch.mm, square, square), 20)


def on_cuda(console: Console) -> dict[str, Any]:
    rate = matrix_rate()
    rows = []
    for size in CUDA_SIZES:
        tensors = inputs(size, "cuda")
        for name in (BASE, f"{BASE}, compiled", "chunked", "chunked, pairs", "auto", "auto, pairs"):
            row: dict[str, Any] = {"size": size, "form": name}
            rows.append(row)
            try:
                measure_on_cuda(row, functools.partial(step, form_of(name), tensors))
            except torch.OutOfMemoryError:
                row["note"] = "does not fit"
            torch.cuda.empty_cache()
            if "seconds" in row:  # 8 products, as the cosine with a gate for each anchor needs them
                row["products_per_second"] = 16 * size**2 * DIM / row["seconds"]
                row["share_of_matrix_rate"] = row["products_per_second"] / rate
    print_times(console, rows, f"bf16; `of rate`: of the bf16 matrix rate of this run, {rate / 1e12:,.0f} TFLOP/s")
    return {"times": rows, "matrix_rate": rate, "device": torch.cuda.get_device_name()}


def measure_on_cuda(row: dict[str, Any], call: Callable[[], Tensor]) -> None:
    row["loss"] = call().item()
    device_seconds(call, 3)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    row["extra_bytes"] = torch.cuda.max_memory_allocated() - before
    row["seconds"] = device_seconds(call, 20 if row["size"] <= 32768 else 5)


# --- both ------------------------------------------------------------------------------------------------------------


def print_times(console: Console, rows: list[dict[str, Any]], note: str) -> None:
    base = {row["size"]: row.get("seconds") for row in rows if row["form"] == BASE}
    on_gpu = any("extra_bytes" in row for row in rows)
    table = Table("B = N", "form", "time", f"x {BASE}", "loss", title=f"forward + backward, D = {DIM}, {note}")
    for column in ("memory", "of rate") if on_gpu else ():
        table.add_column(column)
    for row in rows:
        seconds, reference = row.get("seconds"), base[row["size"]]
        row["speedup"] = reference / seconds if seconds and reference else None
        cells = [f"{row['size']:,}", row["form"]]
        cells.append(f"{1e3 * seconds:,.3f} ms" if seconds else row.get("note", ""))
        cells.append(f"{row['speedup']:.2f}" if row["speedup"] else "")
        cells.append(f"{row['loss']:.5f}" if "loss" in row else "")
        if on_gpu and seconds:
            cells += [f"{row['extra_bytes'] / 2**20:,.1f} MiB", f"{row['share_of_matrix_rate']:.0%}"]
        table.add_row(*cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--form", help="of one first call on the CPU, printed as JSON")
    parser.add_argument("--size", type=int, default=1024)
    arguments = parser.parse_args()
    if arguments.form:
        torch.set_num_threads(1)
        print(json.dumps(first_call(arguments.form, arguments.size)))
        return
    console = Console()
    found = on_cpu(console) if arguments.device == "cpu" else on_cuda(console)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"loss-{arguments.device}.json"
    path.write_text(json.dumps({"dim": DIM, **found, "machine": collect()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
