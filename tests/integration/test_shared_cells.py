"""Two launches of two studies with the same cells, at the same moment; the first of them detached."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from simlap.record.journal import cell_storage, read_rows, read_study
from tests.integration.studies import Lab, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STUDY = """
name: {name}
base: base.yaml
set: {{train.epochs: 20}}
factors: {{temperature: {{path: method.temperature, levels: {levels}}}}}
baseline: {{temperature: 0.1}}
seeds: 1
"""


def test_no_cell_is_run_twice(tmp_path: Path) -> None:
    lab = Lab(tmp_path, STUDY.format(name="small", levels=[0.1, 0.2, 0.3, 0.4]))
    (tmp_path / "other.yaml").write_text(STUDY.format(name="other", levels=[0.1, 0.3, 0.2, 0.5]))
    begun = lab.run("ablate", "study.yaml", "--detach")
    assert begun.returncode == 0, begun.stderr
    assert "kill -INT" in begun.stdout
    lease = tmp_path / "runs/studies/small/lease.json"
    pid = int(re.findall(r"process (\d+)", begun.stdout)[0])
    assert json.loads(lease.read_text())["pid"] == pid, "it runs by itself"
    done = lab.run("ablate", "other.yaml")
    assert done.returncode == 0, (done.stdout, done.stderr)
    wait_for(lambda: not lease.exists())
    (log,) = (tmp_path / "runs/studies/small").glob("launch-*.log")
    # what the first one had finished before the second looked is nothing to it
    for said, most in ((log.read_text(), {"4"}), (done.stdout, {"1", "2", "3", "4"})):
        (to_run,) = set(re.findall(r"\[\d+/(\d+)\]", said))
        assert to_run in most
        assert said.count("done  ") == int(to_run)
        assert "failed" not in said
    cells = {name: read_study(lab.storage, name).arms for name in ("small", "other")}
    for arm in (*cells["small"], *cells["other"]):
        (cell,) = arm.cells
        assert (cell.state, cell.epoch) == ("done", 20)
        rows = [row["type"] for row in read_rows(cell_storage(lab.storage, cell.cell_id))]
        assert (rows.count("start"), rows.count("end")) == (1, 1)
