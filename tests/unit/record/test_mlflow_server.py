"""What a launch asks a tracking server, and the server of `simlap ui`, without MLflow."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from simlap.errors import UserError
from simlap.record.tracking.guard import Guard, allowed_hosts
from simlap.record.tracking.server import AwayError, OwnServer, check_server, experiments


@contextmanager
def answering(status: int, body: bytes = b"{}") -> Iterator[tuple[str, list[str]]]:
    """Address of a server that always gives this answer, and the authorisations it has seen."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


def test_a_server_that_answers_is_fine() -> None:
    with answering(200) as (uri, _):
        assert check_server(uri) is None


@pytest.mark.parametrize("status", [401, 403])
def test_one_that_lets_nobody_in_is_an_error_with_the_remedy(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush")
    with answering(status) as (uri, seen):
        with pytest.raises(UserError) as error:
            check_server(uri)
        assert uri in str(error.value)
    assert seen == ["Basic bWU6aHVzaA=="]
    assert "'me'" in str(error.value)
    assert "hush" not in str(error.value)
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in str(error.value)


def test_who_asks_is_found_where_mlflow_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow/credentials").write_text(
        "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = 5%x\n"
    )
    with answering(200) as (uri, seen):
        check_server(uri)
        (tmp_path / ".mlflow/credentials").unlink()
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
        check_server(uri)
    assert seen == ["Basic bWU6NSV4", "Bearer abc"]


@pytest.mark.parametrize(
    ("status", "body", "why"), [(500, b"{}", "HTTP 500"), (503, b"{}", "HTTP 503"), (200, b"<p>", "not as MLflow")]
)
def test_one_in_trouble_is_away(status: int, body: bytes, why: str) -> None:
    with answering(status, body) as (uri, _):
        said = check_server(uri)
    assert said is not None
    assert why in said


def test_one_that_is_not_there_is_away_and_other_stores_are_not_asked() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert "does not answer" in str(check_server(uri))
    with pytest.raises(AwayError):
        experiments(uri)
    assert check_server("sqlite:////nowhere/mlflow.db") is None


def test_experiments_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my mlflow.db"
    with pytest.raises(UserError, match="no such file"):
        experiments(f"sqlite:///{file}")
    with sqlite3.connect(file) as store:
        store.execute("create table experiments (experiment_id integer, name text, lifecycle_stage text)")
        store.execute(
            "insert into experiments values (0, 'Default', 'active'), (1, 'filter', 'active'), (2, 'x', 'deleted')"
        )
    assert experiments(f"sqlite:///{file}") == {"Default": "0", "filter": "1"}
    file.write_text("not a database, and long enough to be seen as none")
    with pytest.raises(UserError, match="not a store of MLflow's"):
        experiments(f"sqlite:///{file}")


def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port: cannot be used \(Address already in use\).*{port}"):
            OwnServer("sqlite:///x.db", port)
    assert OwnServer("sqlite:///x.db").port > 0


def test_a_host_that_is_not_this_machine_is_an_error() -> None:
    with pytest.raises(UserError, match=r"--host: no interface of this machine has this address.*192\.0\.2\.77"):
        OwnServer("sqlite:///x.db", host="192.0.2.77")
    with pytest.raises(UserError, match=r"--host: no such name or address"):
        OwnServer("sqlite:///x.db", host="no such name")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_needs_no_password(host: str) -> None:
    assert OwnServer("sqlite:///x.db", host=host).guard is None


def test_others_need_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")  # to be put back
    server = OwnServer("sqlite:///x.db", host="0.0.0.0")
    assert server.url == f"http://127.0.0.1:{server.port}"
    assert server.guard is not None
    with server.guard as guard:
        folder, given = guard.password_file.parent, guard.environment
        assert (guard.user, guard.is_made) == ("simlap", True)
        password = guard.password_file.read_text()
        assert len(password) >= 32
        assert given["MLFLOW_AUTH_ADMIN_PASSWORD"] == password == os.environ["MLFLOW_TRACKING_PASSWORD"]
        assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, guard.password_file)] == [0o700, 0o600]
        assert password not in (folder / "auth.ini").read_text()
    assert not folder.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_PASSWORD", "one of my own")
        with Guard("0.0.0.0", 1) as guard:
            assert (guard.is_made, guard.environment["MLFLOW_AUTH_ADMIN_PASSWORD"]) == (False, "one of my own")


def test_a_server_answers_to_its_own_names_only() -> None:
    names = allowed_hosts("0.0.0.0", 5000)
    assert {"127.0.0.1:5000", "localhost:5000", f"{socket.gethostname()}:5000"} <= set(names)
    assert not any("*" in name or name.startswith("0.0.0.0") for name in names)
    assert allowed_hosts("::1", 5000) == ["[::1]:5000"]
