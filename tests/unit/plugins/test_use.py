"""The plug-ins of docs/plugins.md in training and in plans."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from simlap.config import yaml
from simlap.record.code import code_hash, code_of
from simlap.record.journal import read_cell
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.study.plan import Plan, make_plan
from simlap.study.spec import load_study
from simlap.train.world import World
from tests.packages import install_documented, refresh
from tests.tiny import TREE, tiny
from tests.unit.study.pretend import pretend

BAND = {"kind": "band", "width": 0.25}
STUDY = """
name: bands
base: base.yaml
factors:
  filter: {path: method.gate, levels: {gumbel: {kind: gumbel}, band: {kind: band}}}
  width: {path: method.gate.width, levels: [0.25, 0.5], when: {filter: band}}
baseline: {filter: gumbel}
seeds: 1
"""


@pytest.fixture
def bands(site: Path) -> Path:
    install_documented(site)
    refresh(site)
    return site


def plan(folder: Path, runs: str = "runs") -> Plan:
    (folder / "base.yaml").write_text(yaml.dump(TREE))
    (folder / "study.yaml").write_text(STUDY)
    return make_plan(load_study(folder / "study.yaml"), Storage(folder / runs))


@pytest.mark.parametrize(
    "changes",
    [
        {"method__gate": BAND},
        {"method": {"kind": "fuse", "gate": BAND, "embed_dim": 16}},
        {"method": {"kind": "prototypes"}},
    ],
    ids=["simlap", "fuse", "prototypes"],
)
def test_training(bands: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    experiment = tiny(train__epochs=4, **changes)
    task = CellTask("c", experiment.model_dump(mode="json"), str(tmp_path / "runs"))
    for _ in run_cell(task, World()):
        pass
    view = read_cell(Storage(tmp_path / "runs"), "c")
    losses = [row.metrics["train/loss"] for row in view.rows if "train/loss" in row.metrics]
    assert view.state == "done"
    assert losses[-1] < losses[0]


def test_a_band_is_of_both_classes(bands: Path) -> None:
    import torch

    from simlap.data.batch import Pairs
    from simlap.nn import build_filter

    method = tiny(method__gate=BAND).method
    gate = build_filter(method.gate, num_classes=4, embed_dim=8)  # type: ignore[union-attr]
    labels, pair_labels = torch.tensor([0, 2, 2]), torch.tensor([1, 0, 0])
    of_rows = gate(labels, pair_labels).of_rows
    assert of_rows.int().tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], *[[1, 1, 0, 0, 1, 1, 0, 0]] * 2]
    assert torch.equal(gate(labels, pair_labels, None, Pairs.of(labels, pair_labels)).of_rows, of_rows)


def test_a_plan_in_a_process_of_its_own_needs_no_torch(bands: Path, tmp_path: Path) -> None:
    """The checks are made in a child of it, which finds the package too; the second time there is none."""
    (tmp_path / "base.yaml").write_text(yaml.dump(TREE))
    (tmp_path / "study.yaml").write_text(STUDY)
    script = (
        "import sys; from simlap.storage import Storage; from simlap.study.plan import make_plan; "
        "from simlap.study.spec import load_study; made = make_plan(load_study('study.yaml'), Storage('runs')); "
        "print(*sorted(c.cell_id for c in made.cells)); "
        "print(*(name for name in ('torch', 'ray', 'simlap_bands.modules') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids, imported = done.stdout.split("\n")[:2]
    assert ids.split() == sorted(cell.cell_id for cell in plan(tmp_path).cells)
    assert imported == ""


def test_cells_are_stale_where_the_package_changed(bands: Path, tmp_path: Path) -> None:
    made = plan(tmp_path)
    assert [arm.name for arm in made.study.arms] == ["filter=gumbel", "filter=band width=0.25", "filter=band width=0.5"]
    for cell in made.cells:
        pretend(cell, code=code_of(cell.experiment))
    assert code_of(made.cells[0].experiment) == code_hash() != code_of(made.cells[1].experiment)
    assert [cell.action for cell in plan(tmp_path).cells] == ["done"] * 3
    modules = bands / "simlap_bands/modules.py"
    modules.write_text(f"from . import more  # relative\n{modules.read_text()}")
    (bands / "simlap_bands/more.py").write_text("A = 1\n")
    refresh(bands)
    assert [cell.action for cell in plan(tmp_path).cells] == ["done", "stale", "stale"]
    for cell in plan(tmp_path, "again").cells:
        pretend(cell, code=code_of(cell.experiment))
    assert [cell.action for cell in plan(tmp_path, "again").cells] == ["done"] * 3
    (bands / "simlap_bands/more.py").write_text("A = 2  # another length, for the cache\n")
    refresh(bands)
    assert [cell.action for cell in plan(tmp_path, "again").cells] == ["done", "stale", "stale"]
