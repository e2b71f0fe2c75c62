"""Real tracking servers for tests: on sqlite or PostgreSQL, with or without passwords; and a proxy that misbehaves."""

from __future__ import annotations

import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

USER, PASSWORD = "admin", "a-secret-of-twelve"
_FIND = "/usr/lib/postgresql"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(what: str, condition: Callable[[], Any], timeout_s: float = 150.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.1)


class Server:
    """`mlflow server` on a loopback port. It can be killed, and started again on what it left."""

    def __init__(self, folder: Path, store: str, *options: str, environment: dict[str, str] | None = None) -> None:
        self.folder, self.store, self.options = folder, store, options
        self.environment = environment or {}
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers."""
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **self.environment}
        words = ["--backend-store-uri", self.store, "--artifacts-destination", str(self.folder / "artifacts")]
        words += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1", *self.options]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *words],
                stdout=log, stderr=log, env=environment, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        wait_until("the server", self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """At once and without a word, with its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()


def postgres_programs() -> Path | None:
    """Folder of PostgreSQL's programs; None where it is not installed."""
    installed = sorted(Path(_FIND).glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    found = shutil.which("initdb") or (installed[-1] if installed else None)
    return Path(found).parent if found else None


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL cluster that is thrown away. Gives the address of its database, with a password."""
    programs = postgres_programs()
    assert programs is not None
    root = os.getuid() == 0
    user: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if root else {}
    data, port = folder / "data", free_port()
    folder.mkdir(parents=True)
    (folder / "password").write_text(PASSWORD)
    if root:  # it refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        for parent in folder.parents[: len(folder.parents) - 1]:
            if parent.stat().st_uid == 0 and not parent.stat().st_mode & 1:
                parent.chmod(parent.stat().st_mode | 1)
    make: list[str | Path] = [
        programs / "initdb",
        "-D",
        data,
        "-U",
        "simlap",
        "-A",
        "scram-sha-256",
        f"--pwfile={folder / 'password'}",
        "-N",
    ]
    subprocess.run(make, check=True, capture_output=True, cwd=folder, **user)
    settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    with (folder.parent / "postgres.log").open("ab") as log:
        process = subprocess.Popen(
            [programs / "postgres", "-D", data, *words], stdout=log, stderr=log, cwd=folder, **user
        )
    try:
        wait_until("PostgreSQL", lambda: _listens(port), 60)
        yield f"postgresql+psycopg2://simlap:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def basic_auth(folder: Path) -> dict[str, str]:
    """Environment of a server with `--app-name basic-auth`, whose users are in this folder."""
    file = folder / "auth.ini"
    file.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/users.db\n"
        f"admin_username = {USER}\nadmin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    return {"MLFLOW_AUTH_CONFIG_PATH": str(file), "MLFLOW_FLASK_SERVER_SECRET_KEY": "for this test only"}


class FaultProxy:
    """Passes requests on to a server, and misbehaves as it is told: what `fault` names at the moment of a request.

    `delay`: answers after `delay_s`; `errors`: half of the requests get a 500 or 503, and the server does not see them; `cut`:
    half of the answers are thrown away after the server has done what was asked, and the connection is closed. The first
    request after `fault` was set is always one of them.
    """

    def __init__(self, port: int, seed: int = 0, delay_s: float = 1.0) -> None:
        self.target, self.delay_s = port, delay_s
        self.count: dict[str, int] = {"delay": 0, "errors": 0, "cut": 0, "": 0}
        self._rng, self._lock = random.Random(seed), threading.Lock()
        self._fault, self._first = "", False
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def fault(self) -> str:
        return self._fault

    @fault.setter
    def fault(self, fault: str) -> None:
        with self._lock:
            self._fault, self._first = fault, fault != ""

    def start(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def pass_on(self) -> None:
                proxy._pass_on(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """From now on connections are refused."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> FaultProxy:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _pass_on(self, request: BaseHTTPRequestHandler) -> None:
        with self._lock:
            fault = self._fault
            hit = self._first or fault == "delay" or (fault != "" and self._rng.random() < 0.5)
            self._first = False
            status = self._rng.choice((500, 503))
            self.count[fault if hit else ""] += 1
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if hit and fault == "errors":
            request.send_error(status)
            return
        if hit and fault == "delay":
            time.sleep(self.delay_s)
        server = http.client.HTTPConnection("127.0.0.1", self.target, timeout=60)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "connection")}
        server.request(request.command, request.path, body or None, headers)
        answer = server.getresponse()
        content = answer.read()
        server.close()
        if hit and fault == "cut":
            request.close_connection = True
            return
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "server", "date"):
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)
