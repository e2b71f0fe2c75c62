"""Time and extra peak memory of the subspace InfoNCE, forward and backward, against the same loss written plainly.

    python benchmarks/loss.py [--size 1024] [--dim 256]

Forms: `simlap` (ours), `two products` (the same algebra left to autograd) and `broadcast` (the definition, with its
B x N x D tensors). Each runs in processes of its own with one torch thread, the forms in turn, for three rounds. Extra
peak memory: the kernel's high-water mark of resident memory during the first full-size call, less the resident memory
just before it (inputs and libraries are there already). Time: the median of the later calls; the processor time beside
it depends less on what else the machine does. The table also goes to benchmarks/results/loss-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from simlap.losses import subspace_info_nce

TEMPERATURE = 0.1
NUM_CLASSES = 10
RESULTS = Path(__file__).parent / "results" / "loss-cpu.json"


def plain_nce(similarities: Tensor, labels: Tensor, pair_labels: Tensor, key_labels: Tensor) -> Tensor:
    """docs/method.md, steps 4 and 5, from similarities [B, N]."""
    logits = similarities / TEMPERATURE
    positive = key_labels[None] == pair_labels[:, None]
    negative = (key_labels[None] != labels[:, None]) & ~positive
    of_negatives = torch.logsumexp(logits.masked_fill(~negative, -math.inf), dim=1, keepdim=True)
    losses = torch.logaddexp(logits, of_negatives) - logits
    return losses.masked_fill(~positive, 0.0).sum() / positive.sum()


def broadcast(z: Tensor, keys: Tensor, gates: Tensor, *labels: Tensor) -> Tensor:
    """The definition."""
    g, k = gates[:, None], keys[None]
    return plain_nce(F.cosine_similarity(g * z[:, None], g * k, dim=-1), *labels)


def two_products(z: Tensor, keys: Tensor, gates: Tensor, *labels: Tensor) -> Tensor:
    """Two matrix products, differentiated by autograd."""
    squared = gates.square()
    norms = (gates * z).norm(dim=1, keepdim=True) * (squared @ keys.square().T).sqrt()
    return plain_nce((squared * z) @ keys.T / norms, *labels)


def ours(z: Tensor, keys: Tensor, gates: Tensor, *labels: Tensor) -> Tensor:
    """The library's."""
    return subspace_info_nce(z, keys, gates, *labels, temperature=TEMPERATURE)


ROUNDS = 3
FORMS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "simlap": (ours, 7),
    "two products": (two_products, 7),
    "broadcast": (broadcast, 1),
}
"""Name to form and number of timed calls in each round."""


def inputs(size: int, dim: int) -> tuple[Tensor, ...]:
    """z, keys, gates (with gradient), labels, pair labels, key labels."""
    torch.manual_seed(0)
    labels = torch.randint(NUM_CLASSES, (size,))
    vectors = [torch.randn(size, dim), torch.randn(size, dim), torch.rand(size, dim)]
    return (*[v.requires_grad_() for v in vectors], labels, labels[torch.randperm(size)], labels)


def resident(field: str) -> int:
    """Bytes of resident memory: `VmRSS` now, `VmHWM` at its highest since the last reset (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def measure(name: str, size: int, dim: int) -> dict[str, Any]:
    """Figures of one form; meant for a fresh process."""
    torch.set_num_threads(1)
    form, repeats = FORMS[name]

    def step(tensors: tuple[Tensor, ...]) -> tuple[float, float, float]:
        """Loss, seconds, seconds of the processor."""
        for v in tensors[:3]:
            v.grad = None
        start, start_cpu = time.perf_counter(), time.process_time()
        loss = form(*tensors)
        loss.backward()
        return loss.item(), time.perf_counter() - start, time.process_time() - start_cpu

    for _ in range(3):
        step(inputs(32, dim))  # libraries load and allocate on first use
    tensors = inputs(size, dim)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    loss, _, _ = step(tensors)
    extra = resident("VmHWM") - before
    times = [step(tensors)[1:] for _ in range(repeats)]
    return {"loss": loss, "extra_bytes": extra, "times": times}


def machine() -> dict[str, Any]:
    """Facts about the machine."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": 1,
    }


def summary(name: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over all calls of all rounds."""
    seconds, cpu_seconds = zip(*(times for one in rounds for times in one["times"]), strict=True)
    return {
        "form": name,
        "loss": rounds[0]["loss"],
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(cpu_seconds),
        "extra_bytes": statistics.median(one["extra_bytes"] for one in rounds),
        "timed_calls": len(seconds),
    }


def main() -> None:
    """Measures all forms, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="B = N")
    parser.add_argument("--dim", type=int, default=256, help="D")
    parser.add_argument("--form", choices=FORMS, help="measure one form here and print JSON")
    arguments = parser.parse_args()
    if arguments.form:
        print(json.dumps(measure(arguments.form, arguments.size, arguments.dim)))
        return
    facts = machine()
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in FORMS}
    for _ in range(ROUNDS):
        for name, rounds in measured.items():
            options = ["--size", str(arguments.size), "--dim", str(arguments.dim), "--form", name]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [sys.executable, __file__, *options], check=True, env=environment, stdout=subprocess.PIPE, text=True
            )
            rounds.append(json.loads(done.stdout))
    rows = [summary(name, rounds) for name, rounds in measured.items()]
    table = Table(title=f"subspace InfoNCE, forward + backward, B = N = {arguments.size}, D = {arguments.dim}, float32")
    for column in ("form", "time", "x", "CPU time", "x", "memory", "x", "loss"):
        table.add_column(column, no_wrap=True, justify="left" if column == "form" else "right")
    for row in rows:
        for figure in ("seconds", "cpu_seconds", "extra_bytes"):
            row[f"{figure}_ratio"] = row[figure] / max(rows[0][figure], 1e-9)
        table.add_row(
            row["form"],
            f"{1e3 * row['seconds']:,.0f} ms",
            f"{row['seconds_ratio']:.1f}",
            f"{1e3 * row['cpu_seconds']:,.0f} ms",
            f"{row['cpu_seconds_ratio']:.1f}",
            f"{row['extra_bytes'] / 2**20:,.1f} MiB",
            f"{row['extra_bytes_ratio']:.1f}",
            f"{row['loss']:.6f}",
        )
    console = Console()
    console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    report = {"size": arguments.size, "dim": arguments.dim, "machine": facts, "forms": rows}
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
