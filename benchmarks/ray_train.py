"""What Ray Train costs after start-up: a recipe by `simlap run` and by torchrun, the same core loop in both.

    python benchmarks/ray_train.py --recipe authors | small [--runs 10] [--workers 2] [--device cpu]      (20 minutes)

`authors` is experiments/cifar10_resnet18.yaml (float32 on a CPU), with an epoch of a few steps of two seconds; `small` the small
recipe, whose step of a tenth of a second has 47 exchanges: the hard case, since whatever interrupts one worker keeps all waiting.

A pair of runs is alive at the same time, and only one of them runs at any moment: the other's processes, all of them, Ray's own
and the driver included, are stopped (SIGSTOP), and they change places every three seconds. So both meet the same neighbours on a
shared machine, whose speed changes by a third within a minute, and none pays for the other. Timed is what a run takes, while it
runs, from the end of its first epoch to the end of its last, checkpoints and reports included. The ratio is the geometric mean
over pairs, with its 95 % interval (Student's t of the logarithms).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import t

from benchmarks.scaling import AUTHORS, DATA, RECIPE, ROOT, steal_s
from simlap.record.journal import read_rows
from simlap.record.provenance import collect
from simlap.storage import Storage

RECIPES = {
    "authors": (AUTHORS, 6, ("data.fraction=0.006", "train.precision=fp32")),
    "small": (RECIPE, 13, ("data.fraction=0.1",)),
}
"""Of each: the file, epochs, and what is changed."""
SLICE_S = 3.0
"""Not much less: all that was due meanwhile in twenty stopped processes is done at the beginning of a slice."""
_POLL_S = 0.2  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", choices=sorted(RECIPES))
    parser.add_argument("--runs", type=int, default=10, help="pairs of runs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.recipe is None:  # with all the other benchmarks, which take ten minutes together
        print("not run: Ray Train against torchrun takes 20 minutes, with --recipe authors or small")
        return
    recipe, epochs, changes = RECIPES[options.recipe]
    settings = [str(recipe), f"train.epochs={epochs}", "evaluate=[]", *changes]
    settings += [f"data.train={DATA / 'train.parquet'}", f"data.test={DATA / 'test.parquet'}"]
    gpus = 1 if options.device == "cuda" else 0
    settings += [
        f"resources.workers={options.workers}",
        "resources.cpus_per_worker=1",
        f"resources.gpus_per_worker={gpus}",
    ]
    seconds: dict[str, list[float]] = {"torchrun": [], "Ray Train": []}
    steal = []
    for _ in range(options.runs):
        began, stolen = time.perf_counter(), steal_s()
        with tempfile.TemporaryDirectory() as folder:
            took = pair(settings, Path(folder), options.workers, epochs)
        steal.append((steal_s() - stolen) / (time.perf_counter() - began) / len(os.sched_getaffinity(0)))
        for name, value in took.items():
            seconds[name].append(value)
        each = ", ".join(f"{name} {value:.2f} s" for name, value in took.items())
        print(f"{each}, ratio {took['Ray Train'] / took['torchrun']:.3f}, {steal[-1]:.1%} stolen", flush=True)
    mean, low, high = _interval(
        [math.log(a / b) for a, b in zip(seconds["Ray Train"], seconds["torchrun"], strict=True)]
    )
    ratio = {"mean": math.exp(mean), "low": math.exp(low), "high": math.exp(high)}
    table = Table("", f"seconds for {epochs - 1} epochs", box=None)
    for name, values in seconds.items():
        table.add_row(name, " ".join(f"{value:.2f}" for value in values))
    console = Console()
    console.print(table)
    console.print(
        f"Ray Train / torchrun after start-up: {ratio['mean']:.3f}, 95 % interval {ratio['low']:.3f} to {ratio['high']:.3f}; "
        f"{options.runs} pairs, at most {max(steal):.1%} stolen",
        highlight=False,
    )
    results = Path(__file__).parent / "results" / f"ray_train-{options.device}.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    measured = {"seconds": seconds, "steal": steal, "ratio": ratio, "machine": collect()}
    found[options.recipe] = {"workers": options.workers, "epochs": epochs, **measured}
    results.write_text(json.dumps(found, indent=1) + "\n")


def _interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def pair(settings: list[str], folder: Path, workers: int, epochs: int) -> dict[str, float]:
    """Seconds from the end of the first epoch to the end of the last, by run, each without what it was stopped for."""
    runs: dict[str, Run] = {}
    try:
        for name, start in (("torchrun", _torchrun(settings, folder, workers)), ("Ray Train", _ray(settings, folder))):
            runs[name] = start()
            runs[name].until(1)
            runs[name].stop()
        while unfinished := [run for run in runs.values() if len(run.ends()) < epochs]:
            for run in unfinished:
                run.go()
                time.sleep(SLICE_S)
                run.stop()
        for run in runs.values():
            run.go()
            if run.process.wait() != 0:
                raise RuntimeError(f"{run.process.args!r} ended with {run.process.returncode}")
    finally:
        for run in runs.values():
            run.kill()
    return {name: run.seconds() for name, run in runs.items()}


class Run:
    """A run whose processes can be stopped, all together, and the times at which its epochs ended (by the clock)."""

    def __init__(self, command: list[str], ends: Callable[[subprocess.Popen[str]], Callable[[], list[float]]]) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # or the system may hang up on what is stopped
        )
        self.ends = ends(self.process)
        self._stops: list[list[float]] = []

    def until(self, epochs: int) -> None:
        while len(self.ends()) < epochs:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.process.args!r} ended with {self.process.returncode}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        self._stops.append([time.time(), math.inf])
        self._signal(signal.SIGSTOP)

    def go(self) -> None:
        self._signal(signal.SIGCONT)
        self._stops[-1][1] = time.time()

    def kill(self) -> None:
        if self.process.poll() is None:
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for process in [*(top := psutil.Process(self.process.pid)).children(recursive=True), top]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def seconds(self) -> float:
        first, last = self.ends()[0], self.ends()[-1]
        stopped = sum(max(0.0, min(end, last) - max(begin, first)) for begin, end in self._stops)
        return last - first - stopped


def _torchrun(settings: list[str], folder: Path, workers: int) -> Callable[[], Run]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}", "-m"]
    command += ["simlap.train", *settings, "--out", str(folder / "torchrun")]
    return lambda: Run(command, _lines)


def _lines(process: subprocess.Popen[str]) -> Callable[[], list[float]]:
    """An epoch ends with a line."""
    ends: list[float] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if re.match(r"  epoch \d+:", line):
                ends.append(time.time())

    threading.Thread(target=read, daemon=True).start()
    return lambda: list(ends)


def _ray(settings: list[str], folder: Path) -> Callable[[], Run]:
    folder = folder / "ray"
    command = [sys.executable, "-m", "simlap", "run", *settings, "--storage", str(folder)]

    def rows(process: subprocess.Popen[str]) -> Callable[[], list[float]]:
        """An epoch ends with a row in the journal."""
        threading.Thread(target=process.communicate, daemon=True).start()
        return lambda: [
            row["t"] / 1e3
            for cell in Path(folder, "cells").glob("*")
            for row in read_rows(Storage(folder).child("cells", cell.name))
            if row["type"] == "metrics"
        ]

    return lambda: Run(command, rows)


if __name__ == "__main__":
    main()
