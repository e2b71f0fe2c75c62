"""A server on PostgreSQL that asks for passwords, and behind a proxy that misbehaves: one start of it for all tests here."""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from simlap.record.journal import Journal, read_study
from simlap.record.mlflow import needs_projection, resolve_tracking_uri
from simlap.record.ship import BackgroundShipper, Shipper
from simlap.storage import Storage
from tests.integration.mlflow_studies import study, train, write_checkpoints, write_plan
from tests.integration.rows import journalled, shipped
from tests.integration.servers import PASSWORD, USER, FaultProxy, Server, basic_auth, postgres, postgres_programs
from tests.integration.studies import Lab, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        postgres_programs() is None, reason="PostgreSQL's programs (initdb, postgres) are not installed"
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with postgres(tmp_path_factory.mktemp("pg") / "cluster") as store:
        environment = {**basic_auth(folder), "MLFLOW_BACKEND_STORE_URI": store}
        with Server(folder, store, "--app-name", "basic-auth", environment=environment) as running:
            yield running


@pytest.fixture
def let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


def test_a_password_in_the_address_works_and_is_written_nowhere(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # put back afterwards, whatever the address sets
    uri = resolve_tracking_uri(f"http://{USER}:{PASSWORD}@127.0.0.1:{server.port}")
    assert uri == server.url
    storage, view = Storage(tmp_path / "runs"), study(name="password", levels=("on",), epochs=2)
    write_plan(storage, view)
    journals: dict[str, Journal] = {}
    with BackgroundShipper(storage, view.name, uri) as shipper:
        words = Path(f"/proc/{shipper._process.pid}/cmdline").read_text()
        write_checkpoints(storage, view)
        train(storage, view, 1, journals)
        train(storage, view, 2, journals)
        report = shipper.finish()
    assert (report.errors, report.created) == ([], 5)
    assert shipped(MlflowClient(uri), view.name) == journalled(storage, view.name)
    assert PASSWORD not in words
    secret = (PASSWORD.encode(), base64.b64encode(f"{USER}:{PASSWORD}".encode()))
    for file in (file for file in tmp_path.rglob("*") if file.is_file()):
        assert not any(form in file.read_bytes() for form in secret), file


@pytest.mark.parametrize("password", ["", "not the right one"])
def test_who_is_not_let_in_is_told_before_anything_starts(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    lab = Lab(tmp_path)
    if password:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    done = lab.run("ablate", "study.yaml", "--tracking-uri", server.url)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert server.url in line
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in line
    assert "not the right one" not in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("let_in")
def test_a_server_that_misbehaves_ends_up_with_every_row_once(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors, cut answers, refused connections, slow answers: one after another, while eight epochs are journalled."""
    caplog.set_level(logging.WARNING, "simlap.ship")
    storage, view = Storage(tmp_path / "runs"), study(name="faults", levels=("on",), epochs=8)
    write_plan(storage, view)
    journals: dict[str, Journal] = {}
    waited = 0.0

    def returns() -> int:
        return sum("is back" in record.getMessage() for record in caplog.records)

    with FaultProxy(server.port) as proxy:
        shipper, stop = Shipper(storage, view.name, proxy.url), threading.Event()

        def ship() -> None:
            while not stop.is_set():
                shipper.attempt()
                stop.wait(0.05)

        shipping = threading.Thread(target=ship)
        shipping.start()
        for epoch, fault in enumerate(("", "errors", "cut", "refuse", "delay", "errors", "cut"), start=1):
            if fault == "refuse":
                proxy.stop()
            before = proxy.count.get(fault, 0)
            proxy.fault = fault
            began = time.monotonic()
            train(storage, view, epoch, journals)
            waited = max(waited, time.monotonic() - began)
            if fault == "refuse":
                time.sleep(1.5)
                proxy.start()
            else:
                wait_for(lambda: proxy.count[fault] > before, 120)  # noqa: B023 - called at once
            if fault == "delay":  # slow answers are answers
                wait_for(lambda: returns() > 0, 120)
        write_checkpoints(storage, view)
        train(storage, view, 8, journals)
        time.sleep(1.0)
        stop.set()
        shipping.join()
        proxy.fault = ""
        assert shipper.finish().errors == []
        assert min(proxy.count[fault] for fault in ("errors", "cut")) >= 2
        assert not needs_projection(read_study(storage, view.name), storage, proxy.url)
        client = MlflowClient(server.url)
        assert shipped(client, view.name) == journalled(storage, view.name)
        models = client.search_logged_models([shipper.report.experiment_id])
        assert [str(model.status) for model in models] == ["READY"] * 2
    assert waited < 9.0, "who journals does not wait for the server, whose answers are waited for for ten seconds"
    assert returns() >= 2
    in_full = [record for record in caplog.records if record.exc_info]
    assert len(in_full) <= returns() + 1, "once for each time that it was away"


@pytest.mark.usefixtures("let_in")
def test_the_page_of_a_server_that_runs_is_linked_to(server: Server, tmp_path: Path) -> None:
    storage, view = Storage(tmp_path / "runs"), study(name="linked", levels=("on",), reached=1)
    write_plan(storage, view)
    assert Shipper(storage, view.name, server.url).attempt()
    lab = Lab(tmp_path)
    done = lab.run("ui", "linked", "--tracking-uri", server.url, "--no-browser")
    assert (done.returncode, done.stderr) == (0, "")
    experiment = MlflowClient(server.url).get_experiment_by_name("linked")
    assert experiment is not None
    assert f"{server.url}/#/experiments/{experiment.experiment_id}/runs" in done.stdout
    wrong = lab.run("ui", "likned", "--tracking-uri", server.url)
    assert wrong.returncode == 2
    assert "did you mean 'linked'?" in wrong.stderr
