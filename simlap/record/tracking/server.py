"""A tracking server seen from outside: whether it answers and lets us in, which experiments it has, and one of our own."""

from __future__ import annotations

import configparser
import errno
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from simlap.errors import UserError
from simlap.net import LOOPBACK, in_url, is_any, is_loopback
from simlap.record.tracking.guard import Guard
from simlap.record.tracking.uri import sqlite_path, without_credentials
from simlap.redact import hide_credentials

TIMEOUT_S = 5.0
START_S = 180.0
"""A server that does not answer by then will not: on a loaded machine it takes most of a minute."""
_API = "/api/2.0/mlflow"
_POLL_S = 0.2


class AwayError(Exception):
    """A tracking server gives no answer, or none of MLflow's. It may be back later."""


def check_server(uri: str) -> str | None:
    """Ask a tracking server whether it is there, before anything expensive starts. Other stores are not asked.

    Returns:
        Why it does not answer, in words; None where it does.

    Raises:
        UserError: it is there and does not let us in. That will not pass by itself.
    """
    if not uri.startswith("http"):
        return None
    try:
        _ask(uri, "experiments/search", max_results="1")
    except AwayError as error:
        return str(error)
    return None


def experiments(uri: str) -> dict[str, str]:
    """Ids of a store's active experiments by name: of a sqlite file (without MLflow's help), or of a server.

    Raises UserError where the server lets nobody in or the file is not MLflow's, AwayError where the server does not answer.
    """
    path = sqlite_path(uri)
    if path is None:
        found: dict[str, str] = {}
        token = ""
        while True:
            page = _ask(uri, "experiments/search", max_results="1000", **({"page_token": token} if token else {}))
            found |= {one["name"]: str(one["experiment_id"]) for one in page.get("experiments", [])}
            token = page.get("next_page_token") or ""
            if not token:
                return found
    if not path.exists():
        raise UserError(f"tracking URI {uri!r}: there is no such file; --tracking-uri says where the records are")
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=TIMEOUT_S)
        try:
            rows = connection.execute("select name, experiment_id from experiments where lifecycle_stage = 'active'")
            return {name: str(number) for name, number in rows}
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise UserError(f"tracking URI {uri!r}: not a store of MLflow's ({error})") from error


def _ask(uri: str, request: str, **parameters: str) -> Any:
    import requests  # 0.3 s, and MLflow's client uses it too: proxies and certificates are found in the same places

    secure: str | bool = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or (
        os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() not in ("true", "1")
    )
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    user = _user()
    try:
        answer = requests.get(
            f"{uri}{_API}/{request}", params=parameters, timeout=TIMEOUT_S, verify=secure,
            headers={"Authorization": f"Bearer {token}"} if token and not user else {}, auth=user,
        )  # fmt: skip
    except requests.RequestException as error:
        raise AwayError(f"{without_credentials(uri)} does not answer ({type(error).__name__})") from error
    if answer.status_code in (401, 403):
        given = (
            f"user {user[0]!r} with this password" if user else "this token" if token else "anyone without a password"
        )
        raise UserError(
            f"tracking URI {without_credentials(uri)!r}: the server does not let in {given} (HTTP {answer.status_code}); "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if answer.status_code != 200:
        raise AwayError(f"{without_credentials(uri)} answers with HTTP {answer.status_code}")
    try:
        return answer.json()
    except ValueError as error:
        raise AwayError(f"{without_credentials(uri)} answers, but not as MLflow does") from error


def _user() -> tuple[str, str] | None:
    """Name and password, where MLflow's client takes them from."""
    file = configparser.ConfigParser(interpolation=None)
    file.read(Path("~/.mlflow/credentials").expanduser())
    names = ("mlflow_tracking_username", "mlflow_tracking_password")
    name, password = (os.environ.get(key.upper()) or file.get("mlflow", key, fallback=None) for key in names)
    return (name, password) if name and password else None


def _free_port(host: str, port: int | None) -> int:
    """The port, or one that is free."""
    try:
        family, *_, place = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"no such name or address ({error})", key="--host", value=host) from error
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                why = "no interface of this machine has this address; valid: one that it has, or 0.0.0.0 for all"
                raise UserError(why, key="--host", value=host) from error
            why = f"cannot be used ({error.strerror}); another one, or none for any that is free"
            raise UserError(why, key="--port", value=port) from error
        return int(probe.getsockname()[1])


class OwnServer:
    """`mlflow server` on a store of ours; up inside `with`, gone after it. Others than this machine need a password."""

    def __init__(self, store: str, port: int | None = None, host: str = LOOPBACK) -> None:
        """Raises UserError where host or port cannot be used.

        Args:
            store: a resolved tracking URI.
            port: None: any that is free.
            host: name or address of this machine's interface that it listens on.
        """
        self.store, self.host = store, host
        self.port = _free_port(host, port)
        self.url = f"http://{in_url(LOOPBACK if is_any(host) else host)}:{self.port}"
        self.guard = None if is_loopback(host) else Guard(host, self.port)
        """Who may use it; None where nobody else reaches it."""

    def __enter__(self) -> OwnServer:
        with ExitStack() as entered:
            if self.guard is not None:
                entered.enter_context(self.guard)
            self._start()
            self._entered = entered.pop_all()
        return self

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile(prefix="simlap-ui-")  # noqa: SIM115 - closed when the server is stopped
        path = sqlite_path(self.store)
        environment = os.environ | {
            "MLFLOW_BACKEND_STORE_URI": self.store,  # not an argument: it may hold a password
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # four times the memory, for what nobody here uses
        }
        environment.pop("MLFLOW_TRACKING_URI", None)
        words = ["--host", self.host, "--port", str(self.port), "--workers", "1"]
        if self.guard is not None:
            environment |= self.guard.environment
            words += ["--app-name", "basic-auth"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            cwd=path.parent if path else None,
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._entered.close()

    def wait(self) -> None:
        """Until the server ends by itself, which is an error."""
        self._process.wait()
        raise UserError(f"MLflow's server has ended: {self._said()}")

    def _wait(self) -> None:
        end = time.monotonic() + START_S
        while True:
            try:
                _ask(self.url, "experiments/search", max_results="1")
                return
            except AwayError:
                if self._process.poll() is not None:
                    raise UserError(f"MLflow's server did not start: {self._said()}") from None
                if time.monotonic() > end:
                    raise UserError(f"MLflow's server did not answer in {START_S:.0f} s: {self._said()}") from None
                time.sleep(_POLL_S)

    def _said(self) -> str:
        """The last lines of its output."""
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return hide_credentials("\n".join(lines[-5:])) or "it said nothing"

    def _stop(self) -> None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, sign)  # its workers too
                self._process.wait(10)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()
        self._log.close()
