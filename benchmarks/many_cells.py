"""What the study engine costs with many cells: synthetic trainings on the real Ray Tune, resuming, and planning.

    python benchmarks/many_cells.py [--cells 60] [--seconds 1] [--planned 10000]

Cells that train for a second by sleeping, then cells that compute for a second, two side by side (or as many as there are
cores). Everything around the training is real: plan, feed, Tune, warm actors, journal, result, events, logs. `over` is how much
longer it took than the ideal, cells x seconds / slots, from the beginning of the first cell to the end of the last: Ray's start
is paid once. Where the training computes, it waits for the cores that Tune and Ray take.

Resume: `simlap ablate` of the finished study, in a process of its own, Python's start included; MLflow knows of everything by
then, from a launch before. Planning: `make_plan` of another
study, nothing of which has run, twice, in processes of their own: with and without what the first one remembers of the data.

The issue's sizes are 1,000 cells (20 minutes) and 10,000. The table also goes to benchmarks/results/many_cells-cpu.json.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from rich.console import Console

from simlap.config import Experiment, evaluation_id, validate, yaml
from simlap.record.journal import Journal, cell_storage, next_attempt
from simlap.record.provenance import collect
from simlap.run.cluster import Node, connect
from simlap.run.task import CellTask
from simlap.storage import Storage
from simlap.study.events import EventLog
from simlap.study.placement import check_resources
from simlap.study.plan import make_plan
from simlap.study.spec import load_study
from simlap.train.loop import Progress as Reached

RESULTS = Path(__file__).parent / "results" / "many_cells-cpu.json"
METRIC = "val/probe_top1"
BASE: dict[str, Any] = {
    "name": "many",
    "data": {"source": "digits"},
    "backbone": {"name": "conv3", "kwargs": {"widths": [2]}},
    "method": {"kind": "simlap", "gate": {"kind": "open"}, "embed_dim": 4, "projector_hidden_dim": 4},
    "optim": {"warmup_epochs": 0.0},
    "train": {"epochs": 1, "batch_size": 1024},
    "evaluate": [{"kind": "probe"}],
}
PLAN = """
import json, re, sys, time
from pathlib import Path
before = time.perf_counter()
from simlap.storage import Storage
from simlap.study.plan import make_plan
from simlap.study.spec import load_study
plan = make_plan(load_study(sys.argv[1]), Storage(sys.argv[2]))
seconds = time.perf_counter() - before
assert not {"torch", "ray"} & sys.modules.keys()
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])  # getrusage's is the parent's too
print(json.dumps([len(plan.cells), seconds, peak / 1024]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--planned", type=int, default=10000)
    options = parser.parse_args()
    figures: dict[str, float] = {}
    console = Console()

    def note(label: str, value: float) -> None:
        figures[label] = value
        console.print(f"{label:42s} {f'{value:.1%}' if 'over' in label else f'{value:.3f}'}", highlight=False)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"SIMLAP_CACHE": f"{folder}/cache", "XDG_CACHE_HOME": f"{folder}/xdg"}
        for which in ("remembering nothing", "again"):
            cells, seconds, peak = plan_apart(folder / "planned", options.planned)
            note(f"plan of {cells:,} cells, {which}, s", seconds)
        note("its memory at the peak, MiB", peak)
        nodes = connect(None)
        for what in ("sleeps", "computes"):
            study = folder / what
            console.print(f"{options.cells:,} cells of {options.seconds:g} s", highlight=False)
            for label, value in run(study, what, options.cells, options.seconds, nodes).items():
                note(f"{what}: {label}", value)
            if what == "sleeps":
                note("a launch that only tells MLflow of them, s", resume(study))
                note(f"resume of {options.cells:,} finished cells, s", resume(study))
    RESULTS.parent.mkdir(exist_ok=True)
    facts = {"cells": options.cells, "seconds": options.seconds, "planned": options.planned}
    RESULTS.write_text(json.dumps({**facts, "figures": figures, "machine": collect()}, indent=1) + "\n")


def write_study(folder: Path, name: str, cells: int) -> Path:
    """A study of two arms for each hundred cells, or of two."""
    folder.mkdir(exist_ok=True)
    (folder / "base.yaml").write_text(yaml.dump(BASE))
    arms = max(2, cells // 100)
    study = {
        "name": name,
        "base": "base.yaml",
        "factors": {"temperature": {"path": "method.temperature", "levels": [(n + 100) / 1000 for n in range(arms)]}},
        "baseline": {"temperature": 0.1},
        "seeds": cells // arms,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.dump(study))
    return path


def plan_apart(folder: Path, cells: int) -> tuple[int, float, float]:
    """Cells, seconds (imports included) and MiB of a plan."""
    path = write_study(folder, "planned", cells)
    found: tuple[int, float, float] = tuple(json.loads(_python("-c", PLAN, str(path), str(folder / "runs"))))
    return found


def resume(folder: Path) -> float:
    """Seconds of a launch that has nothing to do."""
    before = time.perf_counter()
    said = _python(
        "-m", "simlap", "ablate", str(folder / "study.yaml"), "--storage", str(folder / "runs"),
        "--tracking-uri", f"sqlite:///{folder}/mlflow.db",
    )  # fmt: skip
    seconds = time.perf_counter() - before
    assert "nothing to run" in said, said
    return seconds


def _python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(folder: Path, what: str, cells: int, seconds: float, nodes: list[Node]) -> dict[str, float]:
    """Run so many synthetic cells; what it cost."""
    study = load_study(write_study(folder, what, cells))
    storage = Storage(folder / "runs")
    slots = check_resources(study, nodes)
    from simlap.study.execute import execute  # these import Tune
    from simlap.study.progress import Progress
    from simlap.study.schedule import InOrder
    from simlap.study.trainable import CellTrainable

    class Synthetic(CellTrainable):
        """A cell whose training passes the time and has a value."""

        def _begin(self, config: dict[str, Any]) -> None:
            began = time.time()
            super()._begin(config)
            self._epochs = _pass_time(CellTask(**config["cell"]["task"]), what, seconds, began)

    plan = make_plan(study, storage)
    plan.save()
    with Progress(plan, Console(file=io.StringIO())) as progress:
        events = EventLog(storage.child("studies", study.name))
        assert execute(
            plan, plan.cells, slots=slots, scheduler=InOrder(), progress=progress, events=events, trainable=Synthetic
        )  # fmt: skip
    times = [storage.read_json(f"times/{cell.cell_id}") for cell in plan.cells]
    span = max(t["ended"] for t in times) - min(t["began"] for t in times)
    ideal = len(times) * seconds / slots
    by_process: dict[int, list[tuple[float, float]]] = {}
    for t in times:
        by_process.setdefault(t["process"], []).append((t["began"], t["ended"]))
    gaps = [
        after[0] - before[1] for one in map(sorted, by_process.values()) for before, after in itertools.pairwise(one)
    ]
    return {"over": span / ideal - 1, "s from cell to cell, median": statistics.median(gaps), "longest": max(gaps)}


def _pass_time(task: CellTask, what: str, seconds: float, began: float) -> Generator[Reached]:
    storage = Storage(task.storage)
    cell = cell_storage(storage, task.cell_id)
    journal = Journal(cell, writer=f"synthetic.{os.getpid()}", attempt=next_attempt(cell))
    cell.write("config.yaml", yaml.dump(task.experiment).encode())
    cell.write_json("provenance.json", task.provenance)
    journal.start(0, 0, {})
    if what == "sleeps":
        time.sleep(seconds)
    else:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            sum(range(10_000))
    metrics = {METRIC: 0.5, "time/epoch_s": seconds}
    journal.epoch(1, metrics)
    experiment = validate(Experiment, task.experiment, file="the cell")
    evaluations = {evaluation_id(protocol, task.cell_id): {"test/probe_top1": 0.5} for protocol in experiment.evaluate}
    result = {
        "schema_version": 1,
        "epochs": 1,
        "evaluations": evaluations,
        "checkpoint": {"path": "none", "sha256": task.cell_id},
    }
    cell.write_json("result.json", result)
    journal.end("done", 1)
    times = {"began": began, "ended": time.time(), "process": os.getpid()}
    storage.write(f"times/{task.cell_id}", json.dumps(times).encode())
    yield Reached(1, metrics, finished=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
