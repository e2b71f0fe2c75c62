"""Secrets of a launch's environment and command line are in nothing that it leaves or says, even where a cell tells them all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from simlap.record.journal import cell_storage
from tests.integration.canaries import ADDRESS, CANARIES, LEAK, MARK, leaks, leaks_below
from tests.integration.servers import free_port
from tests.integration.studies import Lab
from tests.packages import documented, install, use

pytestmark = pytest.mark.slow

STUDY = """
name: small
base: base.yaml
set: {train.epochs: 1}
factors: {method: {path: method, levels: {quiet: {kind: simlap}, leaky: {kind: prototypes}}}}
baseline: {method: quiet}
seeds: 1
"""


@pytest.fixture
def short() -> Iterator[Path]:
    """A temporary folder with room for Ray's sockets, whose paths are short."""
    folder = tempfile.mkdtemp(prefix="slc-", dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder)


def test_planted_secrets_are_nowhere(tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, entry_points = documented()
    files["simlap_bands/leak.py"] = LEAK
    modules = files["simlap_bands/modules.py"]
    criterion = "def criterion(self, h, batch, noise=None):\n"
    assert criterion in modules
    files["simlap_bands/modules.py"] = modules.replace(
        criterion, f"{criterion}        from simlap_bands.leak import leak\n\n        leak()\n"
    )
    site, lab = tmp_path / "site", Lab(tmp_path / "lab", STUDY)
    use(monkeypatch, site)
    install(site, "simlap-bands", files, entry_points)
    for name, value in {**CANARIES, "MLFLOW_TRACKING_USERNAME": "me"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TMPDIR", str(short))

    done = lab.ablate()
    assert done.returncode == 1, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "Traceback" not in done.stderr, said
    cells = lab.cells()
    assert (cells["method=quiet", 0].state, cells["method=leaky", 0].state) == ("done", "failed")
    failed = cells["method=leaky", 0]
    assert failed.error is not None
    assert MARK in failed.error
    assert "postgresql://host/db, https://host/x?sig=***&v=1: MLFLOW_TRACKING_PASSWORD=***, " in failed.error
    log = cell_storage(lab.storage, failed.cell_id).read("logs/0001.log").decode()
    assert log.count(MARK) >= 4, "printed by Python, by a child, and in the traceback"
    assert log.count("WANDB_API_KEY=*") >= 3
    report = (lab.folder / "runs/studies/small/report/report.md").read_text()
    assert MARK in report
    assert MARK.encode() in (lab.folder / "mlflow.db").read_bytes(), "it has the error"

    # a run, and the address of a database that is away
    uri = f"postgresql://me:{ADDRESS}@127.0.0.1:{free_port()}/db"
    done = lab.run("run", "base.yaml", "train.epochs=1", "method={kind: prototypes}", "--tracking-uri", uri)
    assert done.returncode == 1, done.stdout + done.stderr
    assert MARK in done.stderr
    assert "MLflow is behind" in done.stderr
    said += done.stdout + done.stderr
    assert leaks("said", said.encode()) == []
    assert leaks_below(lab.folder) == []
    assert leaks_below(short) == [], "Ray's logs, and what was kept while it ran"
