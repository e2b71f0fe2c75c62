"""A study whose budget runs out, on a real local Ray: what is left goes on when the budget is raised."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.studies import STUDY, Lab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # Ray starts several times in one test


def test_a_study_goes_on_when_its_budget_is_raised(tmp_path: Path) -> None:
    study = STUDY.replace("epochs: 30", "epochs: 2").replace("seeds: 2", "seeds: 1")
    lab = Lab(tmp_path, study + "budget: {cells: 1}\n")
    done = lab.ablate()
    assert done.returncode == 3, (done.stdout, done.stderr)
    assert "budget reached: 1 cells; raise `budget` in the study file and run the same command" in done.stderr
    assert [cell.state for cell in lab.cells().values()] == ["done", "new"]
    first = lab.starts()
    lab.write(study + "budget: {cells: 2}\n")
    done = lab.ablate()
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert [cell.state for cell in lab.cells().values()] == ["done", "done"]
    assert lab.starts() == {key: starts or [0] for key, starts in first.items()}, "what was done is not run again"


def test_running_cells_are_left_when_the_device_hours_are_used_up(tmp_path: Path) -> None:
    lab = Lab(tmp_path, STUDY.replace("seeds: 2", "seeds: 1") + "budget: {device_hours: 1e-4}\n")
    done = lab.ablate()
    assert done.returncode == 3, (done.stdout, done.stderr)
    assert "of 0.0001 device-hours; raise `budget`" in done.stderr
    assert {cell.state for cell in lab.cells().values()} <= {"new", "running", "interrupted"}, "to be resumed"
    assert not (tmp_path / "runs/studies/small/lease.json").exists()
