"""How a launch ends, whatever happens to it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from simlap.config import yaml
from simlap.run.cluster import Node
from simlap.storage import Storage
from simlap.study import apply, execute, searching
from simlap.study.claims import Claims
from simlap.study.events import read_events
from simlap.study.lease import Lease
from simlap.study.options import Options
from simlap.study.plan import make_plan
from simlap.study.spec import load_study
from tests.tiny import TREE

STUDY = """
name: small
base: base.yaml
factors: {filter: {path: method.gate.kind, levels: [gumbel, open]}}
baseline: {filter: gumbel}
seeds: 2
"""


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["cells", "searches"])
def test_a_launch_that_fails_says_that_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    if where == "cells":
        monkeypatch.setattr(execute, "run_plan", fail)
    else:
        monkeypatch.setattr(searching, "run_searches", fail)
    (tmp_path / "base.yaml").write_text(yaml.dump(TREE))
    (tmp_path / "study.yaml").write_text(STUDY)
    storage = Storage(tmp_path / "runs")
    study = load_study(tmp_path / "study.yaml")
    plan, folder = make_plan(study, storage), storage.child("studies", "small")
    claims = Claims(storage, "small", Lease(folder))
    with pytest.raises(type(error)):
        apply._execute(plan, study, Options(), folder, [Node(8.0, 0.0)], Console(file=io.StringIO()), claims)
    told = [(event["type"], event.get("finished")) for event in read_events(folder)]
    assert told == [("launch", None), ("launch_ended", False)]
