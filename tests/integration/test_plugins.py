"""The package of docs/plugins.md in a real study: its modules reach the actors and the records."""

from __future__ import annotations

from pathlib import Path

import pytest

from simlap.record.journal import cell_storage
from tests.integration.studies import Lab
from tests.packages import install_documented, use

pytestmark = pytest.mark.slow

STUDY = """
name: small
base: base.yaml
set: {train.epochs: 2}
factors: {method: {path: method, levels: {band: {kind: simlap, gate: {kind: band}}, prototypes: {kind: prototypes}}}}
baseline: {method: band}
seeds: 1
"""


def test_a_study_of_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, tmp_path / "site")
    install_documented(tmp_path / "site")
    lab = Lab(tmp_path / "lab", STUDY)
    done = lab.ablate()
    assert done.returncode == 0, done.stdout + done.stderr
    cells = lab.cells()
    assert {key: cell.state for key, cell in cells.items()} == {
        ("method=band", 0): "done", ("method=prototypes", 0): "done",
    }  # fmt: skip
    facts = cell_storage(lab.storage, cells["method=prototypes", 0].cell_id).read_json("provenance.json")
    assert facts["plugins"] == {"method": "simlap-bands 1.0"}
