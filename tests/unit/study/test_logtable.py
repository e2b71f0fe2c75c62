"""What `ablate` writes to a log: lines of cells, the table now and then, totals and budget at the end."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from simlap.config import yaml
from simlap.storage import Storage
from simlap.study.live import LiveArm, LiveCell, LiveStudy
from simlap.study.logtable import LINES, TABLES, LogTable
from simlap.study.plan import make_plan
from simlap.study.progress import Progress
from simlap.study.spec import load_study
from tests.tiny import TREE

STUDY = """
name: small
base: base.yaml
factors: {filter: {path: method.gate.kind, levels: [gumbel, open]}}
baseline: {filter: gumbel}
seeds: 12
budget: {device_hours: 4, wall_hours: 2, cells: 30}
"""


def written(arms: int, seeds: int) -> list[tuple[int, list[str]]]:
    """After how many cells what lines were written."""
    lines = [
        LiveArm(f"arm={i}", [LiveCell(f"{i}.{s}", s, "waiting", 0, 10, 1) for s in range(seeds)], baseline=i == 0)
        for i in range(arms)
    ]
    study, out, found = LiveStudy("s", "m", lines), io.StringIO(), []
    log = LogTable(study, Console(file=out, width=200))
    for number, cell in enumerate((c for line in lines for c in line.cells), start=1):
        cell.state = "done"
        study.touch(cell)
        log.advance(*study.ended, totals=False)
        if out.getvalue():
            found.append((number, out.getvalue().splitlines()))
            out.seek(0)
            out.truncate()
    return found


@pytest.mark.parametrize(("arms", "seeds"), [(2, 2), (6, 5), (60, 5), (2, 500), (300, 3)])
def test_tables_are_few_however_large_the_study_is(arms: int, seeds: int) -> None:
    tables = written(arms, seeds)
    assert len(tables) < TABLES + 1
    assert sum(len(lines) for _, lines in tables) <= 1.5 * arms * seeds, "mostly lines of cells"
    assert all(len(lines) <= LINES + 2 for _, lines in tables)
    assert all(len(line) <= 80 for _, lines in tables for line in lines)
    assert bool(tables) == (arms * seeds > 4)


def test_the_table_of_a_log_is_the_table(tmp_path: Path) -> None:
    (number, lines), *_ = written(6, 5)
    assert number == 8
    assert lines[0] == lines[-1] == ""
    assert lines[2].split() == ["arm=0", "*", "5/5", "done"]
    assert lines[3].split() == ["arm=1", "3/5", "waiting"]
    assert lines[-2] == "8/30 cells, 0 device-hours"


def test_a_launch_writes_cells_a_table_and_the_budget(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.dump(TREE))
    (tmp_path / "study.yaml").write_text(STUDY)
    plan = make_plan(load_study(tmp_path / "study.yaml"), Storage(tmp_path / "runs"))
    out = io.StringIO()
    assert plan.guard is not None
    with Progress(plan, Console(file=out, width=120)) as progress:
        for number, cell in enumerate(plan.cells):
            progress.started(cell.cell_id, 1.0)
            plan.guard.started(cell, 1.0)
            progress.reported(cell.cell_id, 2, 0.5 + number / 100, 36.0)
            plan.guard.ended(cell.cell_id)
            progress.ended(cell.cell_id, "done")
    lines = out.getvalue().splitlines()
    assert sum(line.startswith("done  ") for line in lines) == 24
    heads = [i for i, line in enumerate(lines) if line.startswith("arm ")]
    assert 2 <= len(heads) <= 5
    for i in heads:
        assert "Δ" in lines[i]
        assert "±" in lines[i + 2], "the interval of a difference"
        assert lines[i + 4].startswith("budget: ")
    assert lines[-2] == "24/24 cells, 24 done, 0.24 device-hours".replace(" 24 done,", "")
    assert lines[-1].startswith("budget: ")
    assert lines[-1].endswith("24 of 30 cells begun")
    assert " of 4 device-hours, " in lines[-1]
    assert " of 2 hours, " in lines[-1]


def test_a_terminal_gets_no_lines_and_its_height_is_kept(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.dump(TREE))
    (tmp_path / "study.yaml").write_text(STUDY)
    plan = make_plan(load_study(tmp_path / "study.yaml"), Storage(tmp_path / "runs"))
    out = io.StringIO()
    with Progress(plan, Console(file=out, width=80, height=4, force_terminal=True)) as progress:
        progress.ended(plan.cells[0].cell_id, "done")
    assert "done     " not in out.getvalue()
    assert "… 2: 2 waiting" in out.getvalue()
    assert "cells begun" in out.getvalue()
