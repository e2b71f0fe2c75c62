"""What a study costs beyond its training: trivial cells, scheduled by Ray Tune with ASHA, recorded as always.

    python benchmarks/scheduling.py [--cells 60] [--large-cells 10]

Pure training time is the sum of the cells' own epochs (`time/epoch_s`), divided by the number of cells that run side by side.
All the rest counts as cost: trials and rungs, building the model, journal, checkpoint, evaluation on the test split, result.
The start of Ray and of its actors (until the first epoch is reported) is paid once per launch and shown apart; `per cell, all
in` spreads it over the cells too.

A warm start is the time from the end of a cell (its result and the end of its journal are written) to the beginning of the first
epoch of the next cell on the same actor: scheduling, building the model and everything else that comes before the first batch.
The time to the end of that epoch's training, at least one step later, is shown beside it. Both are shown for the trivial cells
and for cells with a whole ResNet-18 (11 million weights to initialise). The table also goes to
benchmarks/results/scheduling-cpu.json.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from simlap.config import yaml
from simlap.record.journal import read_rows, read_study
from simlap.record.provenance import collect
from simlap.run.cluster import Node, connect
from simlap.storage import Storage
from simlap.study.events import EventLog
from simlap.study.placement import check_resources
from simlap.study.plan import make_plan
from simlap.study.spec import load_study

RESULTS = Path(__file__).parent / "results" / "scheduling-cpu.json"
BASE: dict[str, Any] = {
    "name": "trivial",
    "data": {"source": "digits", "augment": {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "flip": 0.0}},
    "backbone": {"name": "conv3", "kwargs": {"widths": [2]}},
    "method": {"kind": "simlap", "gate": {"kind": "open"}, "embed_dim": 4, "projector_hidden_dim": 4},
    "optim": {"warmup_epochs": 0.0},
    "train": {"epochs": 1, "batch_size": 1024},
    "evaluate": [{"kind": "probe"}],
}
LARGE: dict[str, Any] = {
    **BASE,
    "name": "large",
    "data": {**BASE["data"], "fraction": 0.1},
    "backbone": {"name": "resnet18"},
    "train": {"epochs": 1, "batch_size": 64},
}
TARGET_S = 0.5
_SEGMENT = re.compile(r"^(?P<writer>.+)-\d{4}-\d{5}\.jsonl$")


class Start(NamedTuple):
    """Seconds after the end of the cell before."""

    begins: float
    """The first epoch begins."""
    trained: float
    """It is trained; evaluation follows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", type=int, default=60)
    parser.add_argument("--large-cells", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SIMLAP_CACHE"] = f"{folder}/cache"
        began = time.perf_counter()
        nodes = connect(None)
        figures = {"Ray started": time.perf_counter() - began}
        costs, starts = measure(Path(folder, "trivial"), BASE, options.cells, nodes)
        _, large_starts = measure(Path(folder, "large"), LARGE, options.large_cells, nodes)
    slots = costs.pop("slots")
    figures |= costs
    for name, found in (("trivial", starts), ("ResNet-18", large_starts)):
        for what, times in (("begins", [start.begins for start in found]), ("trained", [s.trained for s in found])):
            figures[f"warm start, {name}: first epoch {what}, median of {len(times)}"] = statistics.median(times)
            figures[f"warm start, {name}: first epoch {what}, longest"] = max(times)
    table = Table("figure", "seconds", f"of {TARGET_S:g} s", box=None)
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}", f"{value / TARGET_S:.2f}" if "begins" in name else "")
    console = Console()
    console.print(f"{options.cells} trivial cells, {slots:g} side by side", highlight=False)
    console.print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    facts = {"cells": options.cells, "large_cells": options.large_cells, "slots": slots}
    RESULTS.write_text(json.dumps({**facts, "figures": figures, "machine": collect()}, indent=1) + "\n")


def measure(folder: Path, base: dict[str, Any], cells: int, nodes: list[Node]) -> tuple[dict[str, float], list[Start]]:
    """Run a study of so many cells; what it cost, and its warm starts, in seconds."""
    folder.mkdir()
    (folder / "base.yaml").write_text(yaml.dump(base))
    study_file = folder / "study.yaml"
    study_file.write_text(
        yaml.dump(
            {
                "name": base["name"],
                "base": "base.yaml",
                "factors": {"temperature": {"path": "method.temperature", "levels": [0.1, 0.2]}},
                "baseline": {"temperature": 0.1},
                "protect": [{"temperature": 0.2}],
                "seeds": cells // 2,
                "scheduler": {"kind": "asha", "grace_epochs": 1},
            }
        )
    )
    storage = Storage(folder / "runs")
    study = load_study(study_file)
    slots = check_resources(study, nodes)
    # these import Tune
    from simlap.study.execute import execute
    from simlap.study.progress import Progress
    from simlap.study.schedule import build_scheduler

    plan = make_plan(study, storage)
    plan.save()
    launched_ms = time.time_ns() / 1e6
    began = time.perf_counter()
    with Progress(plan, Console(file=io.StringIO())) as progress:
        scheduler, events = build_scheduler(plan), EventLog(storage.child("studies", study.name))
        assert execute(plan, plan.pending, slots=slots, scheduler=scheduler, progress=progress, events=events)
    wall = time.perf_counter() - began
    done = [cell for arm in read_study(storage, study.name).arms for cell in arm.cells]
    assert all(cell.state == "done" for cell in done), {cell.reason for cell in done}
    training = sum(cell.seconds for cell in done) / slots
    rows = [
        row["t"] for cell in done for row in read_rows(storage.child("cells", cell.cell_id)) if row["type"] == "metrics"
    ]
    actors_started = (min(rows) - launched_ms) / 1e3
    costs = {
        "slots": float(slots),
        "actors started": actors_started,
        "wall": wall,
        "training": training,
        "per cell": (wall - actors_started - training) / cells,
        "per cell, all in": (wall - training) / cells,
    }
    return costs, warm_starts(storage, [cell.cell_id for cell in done])


def warm_starts(storage: Storage, cell_ids: list[str]) -> list[Start]:
    """Of every cell but the first that a process ran: how long after the end of the cell before it began."""
    cells: dict[str, list[tuple[float, float, float]]] = {}  # by process: first epoch begins, is trained, the cell ends
    for cell_id in cell_ids:
        cell = storage.child("cells", cell_id)
        writers = {match["writer"] for name in cell.list("journal") if (match := _SEGMENT.match(name))}
        assert len(writers) == 1, f"{cell_id} was run by {len(writers)} processes"
        rows = read_rows(cell)
        first = next(row for row in rows if row["type"] == "metrics")
        written, metrics = first["t"] / 1e3, first["metrics"]
        begins, trained = written - metrics["time/epoch_s"], written - metrics["time/evaluation_s"]
        cells.setdefault(writers.pop(), []).append((begins, trained, rows[-1]["t"] / 1e3))
    return [
        Start(begins - ended, trained - ended)
        for process in map(sorted, cells.values())
        for (_, _, ended), (begins, trained, _) in itertools.pairwise(process)
    ]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
