"""Cells that fail, on a real Ray: which are tried again, how, and what comes of it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from simlap.config import yaml
from simlap.record.journal import cell_storage, read_rows, read_study
from simlap.record.view import CellView
from simlap.storage import Storage
from simlap.study.events import EventLog, read_events
from simlap.study.plan import Plan, make_plan
from simlap.study.progress import Progress
from simlap.study.spec import load_study
from tests.tiny import TREE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

KINDS = ["none", "user", "killed", "other", "out_of_memory"]
STUDY = f"""
name: faults
base: base.yaml
set: {{train.epochs: 4}}
factors: {{fate: {{path: method.temperature, levels: {{{", ".join(f"{k}: 0.{i + 1}" for i, k in enumerate(KINDS))}}}}}}}
baseline: {{fate: none}}
seeds: 1
"""


@dataclass
class Ran:
    """A study that was run, and what was said."""

    storage: Storage
    finished: bool
    said: str

    def cell(self, fate: str) -> CellView:
        arms = read_study(self.storage, "faults").arms
        return next(arm.cells[0] for arm in arms if arm.levels["fate"] == fate)

    def attempts(self, fate: str) -> list[dict[str, Any]]:
        """The rows with which attempts started."""
        rows = read_rows(cell_storage(self.storage, self.cell(fate).cell_id))
        return [row for row in rows if row["type"] == "start"]

    def numbers(self, fate: str) -> list[tuple[int, dict[str, float]]]:
        """Without the time they took."""
        rows = self.cell(fate).rows
        return [(r.epoch, {k: v for k, v in r.metrics.items() if not k.startswith("time/")}) for r in rows]

    def events(self, fate: str) -> list[dict[str, Any]]:
        cell_id = self.cell(fate).cell_id
        return [e for e in read_events(self.storage.child("studies", "faults")) if e.get("cell_id") == cell_id]


def run(folder: Path, faults: dict[str, dict[str, str]]) -> Ran:
    # these import Tune
    from simlap.study.execute import execute
    from simlap.study.schedule import InOrder
    from tests.integration.faults import Faulty

    folder.mkdir()
    (folder / "base.yaml").write_text(yaml.dump(TREE))
    (folder / "study.yaml").write_text(STUDY)
    storage = Storage(folder / "runs")
    plan: Plan = make_plan(load_study(folder / "study.yaml"), storage)
    plan.save()
    by_id = {c.cell_id: faults[c.arm.levels["fate"]] for c in plan.cells if c.arm and c.arm.levels["fate"] in faults}
    storage.write_json("faults.json", by_id)
    out = io.StringIO()
    with Progress(plan, Console(file=out, width=200)) as progress:
        finished = execute(
            plan, plan.cells, scheduler=InOrder(), progress=progress, trainable=Faulty,
            events=EventLog(storage.child("studies", "faults")),
        )  # fmt: skip
    return Ran(storage, finished, out.getvalue())


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    import ray

    from simlap.run.cluster import connect

    connect(None)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def undisturbed(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(tmp_path_factory.mktemp("undisturbed") / "study", {})


@pytest.fixture(scope="module")
def disturbed(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    faults = {
        "user": {"1": "user"},
        "killed": {"1": "killed"},
        "other": {"1": "other", "2": "other"},
        "out_of_memory": {"1": "out_of_memory"},
    }
    return run(tmp_path_factory.mktemp("disturbed") / "study", faults)


def test_a_user_error_is_tried_once(disturbed: Ran) -> None:
    cell = disturbed.cell("user")
    assert (cell.state, len(disturbed.attempts("user"))) == ("failed", 1)
    assert [(e["type"], e.get("failure")) for e in disturbed.events("user")] == [
        ("cell_started", None),
        ("cell_failed", "user"),
    ]
    assert "ValueError: the shapes do not match" in (cell.reason or "")


def test_a_killed_process_costs_nothing_but_time(disturbed: Ran, undisturbed: Ran) -> None:
    assert disturbed.cell("killed").state == "done"
    retried = [e for e in disturbed.events("killed") if e["type"] == "cell_retried"]
    assert [e["failure"] for e in retried] == ["lost"]
    assert [row["from_epoch"] > 0 for row in disturbed.attempts("killed")] == [False, True], "it goes on where it was"
    assert disturbed.numbers("killed") == undisturbed.numbers("killed"), "to the last digit"
    assert disturbed.cell("killed").result == undisturbed.cell("killed").result


def test_a_cell_that_fails_twice_and_then_works_is_done(disturbed: Ran, undisturbed: Ran) -> None:
    assert disturbed.cell("other").state == "done"
    assert [e["type"] for e in disturbed.events("other")] == ["cell_started", "cell_retried"] * 2 + [
        "cell_started",
        "cell_done",
    ]
    assert disturbed.numbers("other") == undisturbed.numbers("other")


def test_out_of_memory_gets_a_larger_share_and_the_same_batch(disturbed: Ran, undisturbed: Ran) -> None:
    cell = disturbed.cell("out_of_memory")
    assert cell.state == "done"
    given = [json.loads(disturbed.storage.read(f"given/{cell.cell_id}-{attempt}"))["CPU"] for attempt in (1, 2)]
    assert given == [1.0, 2.0]
    assert cell.config == undisturbed.cell("out_of_memory").config, "neither its batch nor its threads"
    assert disturbed.numbers("out_of_memory") == undisturbed.numbers("out_of_memory")


def test_the_launch_is_finished_and_says_what_failed(disturbed: Ran, undisturbed: Ran) -> None:
    assert undisturbed.finished
    assert disturbed.finished
    assert disturbed.said.count("ValueError: the shapes do not match") == 1


def test_what_an_attempt_printed_is_kept_with_its_cell(disturbed: Ran) -> None:
    from simlap.run.logs import list_logs, read_log

    folder = cell_storage(disturbed.storage, disturbed.cell("other").cell_id)
    assert list_logs(folder) == ["0001.log", "0002.log", "0003.log"]
    logs = [read_log(folder, name)[1].decode() for name in list_logs(folder)]
    for number, text in enumerate(logs, start=1):
        assert f"attempt {number} begins" in text
        assert "a child process prints" in text
        assert ("OSError: the disk is full" in text) == (number < 3)
    assert disturbed.said.count("simlap logs ") == 1, "said with the first error only"
