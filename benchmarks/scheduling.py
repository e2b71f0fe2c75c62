"""What a study costs beyond its training: 60 cells of a trivial experiment, scheduled by Ray Tune with ASHA, recorded as always.

    python benchmarks/scheduling.py [--cells 60]

Pure training time is the sum of the cells' own epochs (`time/epoch_s`), divided by the number of cells that run side by side.
All the rest counts as cost: trials and rungs, building the model, journal, checkpoint, evaluation on the test split, result.
The start of Ray and of its actors (until the first epoch is reported) is paid once per launch and shown apart; `per cell, all
in` spreads it over the cells too. The table also goes to benchmarks/results/scheduling-cpu.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from simlap.config import yaml
from simlap.record.journal import read_rows, read_study
from simlap.record.provenance import collect
from simlap.run.cluster import connect
from simlap.storage import Storage
from simlap.study.apply import check_resources
from simlap.study.events import EventLog
from simlap.study.plan import make_plan
from simlap.study.spec import load_study

RESULTS = Path(__file__).parent / "results" / "scheduling-cpu.json"
BASE = {
    "name": "trivial",
    "data": {"source": "digits", "augment": {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "flip": 0.0}},
    "backbone": {"name": "conv3", "kwargs": {"widths": [2]}},
    "method": {"kind": "simlap", "gate": {"kind": "open"}, "embed_dim": 4, "projector_hidden_dim": 4},
    "optim": {"warmup_epochs": 0.0},
    "train": {"epochs": 1, "batch_size": 256},
    "evaluate": [{"kind": "probe"}],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", type=int, default=60)
    cells: int = parser.parse_args().cells
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), cells)
    slots = figures.pop("slots")
    table = Table("figure", "seconds", box=None)
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}")
    console = Console()
    console.print(f"{cells} trivial cells, {slots:g} side by side", highlight=False)
    console.print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({"cells": cells, "slots": slots, "figures": figures, "machine": collect()}, indent=1) + "\n"
    )


def measure(folder: Path, cells: int) -> dict[str, float]:
    (folder / "base.yaml").write_text(yaml.dump(BASE))
    study_file = folder / "study.yaml"
    study_file.write_text(
        yaml.dump(
            {
                "name": "trivial",
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
    began = time.perf_counter()
    slots = check_resources(study, connect(None))
    ray_started = time.perf_counter() - began
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
    assert all(cell.state == "done" for cell in done)
    training = sum(cell.seconds for cell in done) / slots
    rows = [
        row["t"] for cell in done for row in read_rows(storage.child("cells", cell.cell_id)) if row["type"] == "metrics"
    ]
    actors_started = (min(rows) - launched_ms) / 1e3
    return {
        "slots": float(slots),
        "Ray started": ray_started,
        "actors started": actors_started,
        "wall": wall,
        "training": training,
        "per cell": (wall - actors_started - training) / cells,
        "per cell, all in": (wall - training) / cells,
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
