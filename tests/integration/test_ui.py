"""`simlap ui` on a sqlite store, and launches whose tracking server is away."""

from __future__ import annotations

import shutil
import signal
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import requests

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


def test_others_than_this_machine_need_a_password(tmp_path: Path) -> None:
    lab, port = Lab(tmp_path), free_port()
    page = lab.start("ui", "--host", "0.0.0.0", "--port", str(port), "--no-browser")
    assert page.stdout is not None
    said: list[str] = []
    while not said or "Ctrl-C" not in said[-1]:
        said.append(page.stdout.readline())
        assert said[-1], page.communicate()
    _, user, password = (line.rstrip("\n") for line in said[:3])
    assert user.split() == ["user", "simlap"]
    file = Path(password.removeprefix("password       in "))
    secret = file.read_text()
    assert all(secret not in line for line in said)
    with Path(f"/proc/{page.pid}/cmdline").open() as words:
        assert secret not in words.read()

    def ask(name: str, **how: Any) -> int:
        where = f"http://{name}:{port}/api/2.0/mlflow/experiments/search?max_results=1"
        return requests.get(where, timeout=30, **how).status_code

    address = socket.gethostbyname(socket.gethostname())
    for name in ("127.0.0.1", address):
        assert ask(name) == 401
        assert ask(name, auth=("simlap", "password1234")) == 401
        assert ask(name, auth=("simlap", secret)) == 200
    assert requests.get(f"http://{address}:{port}/", timeout=30).status_code == 401
    assert ask(address, auth=("simlap", secret), headers={"Host": f"evil.example:{port}"}) == 403
    page.send_signal(signal.SIGTERM)
    _, errors = page.communicate(timeout=60)
    assert (page.returncode, errors) == (0, "")
    assert not file.parent.exists()


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
