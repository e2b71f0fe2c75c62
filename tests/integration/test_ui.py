"""`simlap ui` on a sqlite store, and launches whose tracking server is away."""

from __future__ import annotations

import shutil
import signal
import socket
import urllib.request
from pathlib import Path

import pytest

from simlap.record.mlflow import project_study
from tests.integration.mlflow_studies import study, write_plan
from tests.integration.servers import free_port
from tests.integration.studies import Lab

pytestmark = pytest.mark.slow


def test_the_page_is_served_until_the_end_and_not_longer(tmp_path: Path) -> None:
    lab, view = Lab(tmp_path), study(levels=("on",), reached=1)
    write_plan(lab.storage, view)
    project_study(view, lab.storage, f"sqlite:///{tmp_path}/mlflow.db")
    for words, why in (
        (["fliter"], "did you mean 'filter'?"),
        (["filter", "--tracking-uri", "sqlite:///none.db"], "there is no such file"),
    ):
        done = lab.run("ui", *words)
        assert done.returncode == 2
        assert why in done.stderr
    port = free_port()
    page = lab.start("ui", "filter", "--port", str(port), "--no-browser")
    assert page.stdout is not None
    said: list[str] = []
    while not said or "Ctrl-C" not in said[-1]:
        said.append(page.stdout.readline())
        assert said[-1], page.communicate()
    assert (
        f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=arms" in said[1]
    )
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
        assert b"MLflow" in answer.read()
    taken = lab.run("ui", "filter", "--port", str(port))
    assert taken.returncode == 2
    assert (
        f"--port: cannot be used (Address already in use); another one, or none for any that is free (got {port})"
        in taken.stderr
    )
    page.send_signal(signal.SIGTERM)
    _, errors = page.communicate(timeout=60)
    assert (page.returncode, errors) == (0, "")
    with socket.socket() as gone:
        assert gone.connect_ex(("127.0.0.1", port)) != 0, "its server is gone too"


def test_a_launch_says_that_the_server_is_away_and_what_completes_the_records(undisturbed: Lab, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.folder, tmp_path / "lab")
    lab, uri = Lab(tmp_path / "lab"), f"http://127.0.0.1:{free_port()}"
    done = lab.run("ablate", "study.yaml", "--tracking-uri", uri)
    assert done.returncode == 0
    away, behind = done.stderr.splitlines()
    assert away.startswith(f"MLflow is away: {uri} does not answer")
    assert "nothing waits for it" in away
    assert behind.startswith("MLflow is behind:")
    assert "`simlap sync` completes it" in behind
    assert "report.html" in done.stdout
