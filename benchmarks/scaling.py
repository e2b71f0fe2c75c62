"""What data parallelism costs: workers of one run against as many independent runs side by side.

    python benchmarks/scaling.py [--workers 2] [--rounds 3] [--device cpu]

Scaling: the authors' recipe (experiments/cifar10_resnet18.yaml; float32 on a CPU) and the small one on CIFAR-10, their batches
and steps, one thread (or GPU) each. The small one is the hard case: 47 exchanges in a step of a tenth of a second. The run
together and the own runs each have processes of their own, which take turns: an epoch of the run together, then one of the own
runs side by side, while the others sleep. So the machine's cores are equally busy in both, and what is left is what sharing a
batch costs. Images per second are those of all processes; CPU seconds per 1000 images, also of all, leave out
what is spent waiting for the machine. An own run has the same global batch (B rows a step, its worker B / W); with the worker's
number of rows instead, which is shown too, it makes as many steps as the worker.

On a virtual machine the hypervisor takes cores away (steal time); whoever loses one for a moment keeps all workers of a run
waiting, while own runs lose but that moment. So a round counts only where less than 2 % were taken; if too few are so quiet in
twice as many, the quietest count, and their steal is shown.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from simlap.config import Experiment, load_experiment
from simlap.data.splits import load_splits
from simlap.record.provenance import collect
from simlap.train.step import TrainState, build, train_epoch
from simlap.train.world import World

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "experiments" / "cifar10_resnet18_small.yaml"
AUTHORS = ROOT / "experiments" / "cifar10_resnet18.yaml"
DATA = ROOT.parent / "shared" / "data" / "cifar10"
QUIET = 0.02
TOGETHER, SAME_BATCH, SAME_ROWS = "one run together", "own runs, same global batch", "own runs, same rows a step"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    there = torch.cuda.device_count() if options.device == "cuda" else len(os.sched_getaffinity(0))
    if options.workers > there:
        print(
            f"not measured: {options.workers} workers need as many {options.device} devices or cores, here are {there}"
        )
        return
    results = Path(__file__).parent / "results" / f"scaling-{options.device}.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    for file in (AUTHORS, RECIPE):
        found[file.stem] = scaling(file, options.workers, options.rounds, options.device)
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(found, indent=1) + "\n")


def recipe(*changes: str, file: Path = RECIPE) -> Experiment:
    """A shipped recipe; its images are CIFAR-10's."""
    return load_experiment(
        file, [f"data.train={DATA / 'train.parquet'}", f"data.test={DATA / 'test.parquet'}", *changes]
    )


# --- workers against own runs ----------------------------------------------------------------------------------------


def scaling(file: Path, workers: int, rounds: int, device: str) -> dict[str, Any]:
    """Images per second of all processes, by what they do; printed and returned."""
    rates: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    stolen: list[float] = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        teams = {
            name: stack.enter_context(Team(name, file, workers, device, folder))
            for name in (TOGETHER, SAME_BATCH, SAME_ROWS)
        }
        for number in range(2 * rounds + 1):
            began, busy = time.perf_counter(), steal_s()
            for name, team in teams.items():
                rate, cpu_s = team.epoch()
                if number:  # the first one warms up
                    rates.setdefault(name, []).append(rate)
                    cpu.setdefault(name, []).append(cpu_s)
            if number:
                stolen.append((steal_s() - busy) / (time.perf_counter() - began) / len(os.sched_getaffinity(0)))
            if sum(share < QUIET for share in stolen) == rounds:
                break
    counted = sorted(range(len(stolen)), key=stolen.__getitem__)[:rounds]
    rates, cpu = ({name: [values[i] for i in counted] for name, values in all_.items()} for all_ in (rates, cpu))
    steal = [stolen[i] for i in counted]
    table = Table("", "images/s", "CPU s / 1000", "ratio", "rounds", box=None)
    ratios = {}
    for name, values in rates.items():
        each = [a / b for a, b in zip(rates[TOGETHER], values, strict=True)]
        ratios[name] = statistics.median(each)
        numbers = (f"{statistics.median(values):.0f}", f"{statistics.median(cpu[name]):.2f}", f"{ratios[name]:.3f}")
        table.add_row(name, *numbers, f"{min(each):.2f} to {max(each):.2f}")
    console = Console()
    console.print(f"{file.stem}, {workers} workers, {device}; ratio: {TOGETHER} / this", highlight=False)
    console.print(table)
    told = ", ".join(f"{share:.1%}" for share in steal)
    console.print(f"stolen in the {rounds} rounds that count, of {len(stolen)}: {told}", highlight=False)
    measured = {"images_per_s": rates, "cpu_s_per_1000": cpu, "steal": steal, "rounds": len(stolen)}
    return {"workers": workers, **measured, "ratio": ratios, "machine": collect()}


class Team:
    """Processes that do one of the three things, an epoch at a time; they sleep while others have their turn."""

    def __init__(self, what: str, file: Path, workers: int, device: str, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._together, self._pipes = what == TOGETHER, [context.Pipe() for _ in range(workers)]
        self._processes = [
            context.Process(target=_process, args=(rank, what, file, workers, device, folder, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(self._pipes)
        ]

    def __enter__(self) -> Team:
        for process in self._processes:
            process.start()
        for pipe in self._pipes:
            pipe[1].close()  # so that the end of a process is seen here
        return self

    def epoch(self) -> tuple[float, float]:
        """Images per second of all processes, and their CPU seconds per 1000 images."""
        for ours, _ in self._pipes:
            ours.send(True)
        found = [ours.recv() for ours, _ in self._pipes]
        everyone = 1 if self._together else len(found)  # the images of the run together are all processes' already
        rate = sum(rate for rate, _, _ in found) / len(found) * everyone
        return rate, sum(cpu_s for _, cpu_s, _ in found) * 1e3 / (found[0][2] * everyone)

    def __exit__(self, *exception: object) -> None:
        for ours, _ in self._pipes:
            ours.send(False)
        for process in self._processes:
            process.join()


def _process(rank: int, what: str, file: Path, workers: int, device: str, folder: str, turns: Connection) -> None:
    torch.set_num_threads(1)
    on = torch.device(device, rank) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(on)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{folder}/{what}",
        rank=rank,
        world_size=workers,
        timeout=timedelta(minutes=30),
    )
    changes = ["train.epochs=1000"]
    if device == "cpu":  # an epoch of a few seconds
        changes += ["train.precision=fp32", "data.fraction=0.012"] if file == AUTHORS else ["data.fraction=0.04"]
    experiment = recipe(*changes, file=file)
    world = World.current(on)
    if what == SAME_ROWS:
        rows = world.rows(experiment.train.batch_size, 0)
        experiment = experiment.model_copy(update={"train": experiment.train.model_copy(update={"batch_size": rows})})
    state = build(experiment, load_splits(experiment.data), world if what == TOGETHER else World(device=on))
    while turns.recv():
        turns.send(_epoch(state))
    dist.destroy_process_group()


def _epoch(state: TrainState) -> tuple[float, float, int]:
    """Train for one. Images per second of the whole run, CPU seconds of this process, and the images."""
    dist.barrier()
    began, began_cpu = time.perf_counter(), time.process_time()
    assert train_epoch(state)
    for value in state.sums.values():
        value.item()  # waits for the device
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    images = state.loader.steps_per_epoch * state.experiment.train.batch_size
    state.epoch, state.step, state.sums = state.epoch + 1, 0, {}
    return images / seconds, cpu_s, images


def steal_s() -> float:
    """Seconds that the hypervisor has kept this machine's cores from running, all of them together."""
    return float(Path("/proc/stat").read_text().split(maxsplit=9)[8]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
