"""The one process that writes a study into MLflow, beside the training: `python -m simlap.record.ship`.

It reads the journal every few seconds and sends what is new. An error of the tracking server goes to a log file and is
tried again with growing pauses; nothing of it reaches the training, and nothing is lost: the journal is the truth.
It ends when its standard input is closed or it gets SIGTERM, after sending the rest. When its parent died it tries that
once: the next launch of the study has a shipping process of its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from simlap.record.mlflow import Projected, StudyProjector
from simlap.record.tracking.uri import uri_hash, without_credentials
from simlap.redact import HidingStream, hide_credentials
from simlap.storage import Storage

POLL_S = 3.0
MAX_PAUSE_S = 60.0
LAST_ATTEMPTS = 3
"""Attempts to send the rest at the end, before it is left to `simlap sync`."""

_log = logging.getLogger("simlap.ship")


@dataclass
class ShipReport:
    """What was sent. With `errors`, something is missing in MLflow and `simlap sync` completes it."""

    experiment_id: str = ""
    run_id: str = ""
    """The study's run."""
    runs: int = 0
    created: int = 0
    metrics: int = 0
    errors: list[str] = field(default_factory=list)
    """Of the last attempt; empty when MLflow holds everything."""
    notes: list[str] = field(default_factory=list)
    """What cannot be recorded any more."""
    log: str = ""
    """File with the errors in full."""

    def add(self, done: Projected) -> None:
        self.experiment_id, self.run_id, self.runs = done.experiment_id, done.run_id, done.runs
        self.created += done.created
        self.metrics += done.metrics
        self.errors = list(done.errors)
        self.notes += done.notes


class Shipper:
    """Sends one study, again and again. Errors are logged and kept in the report, never raised."""

    def __init__(self, storage: Storage, study: str, tracking_uri: str) -> None:
        self.storage, self.study, self.tracking_uri = storage, study, tracking_uri
        self.report = ShipReport()
        self._projector = StudyProjector(storage, tracking_uri, study)
        self._away: tuple[str, float] | None = None
        """Since when nothing could be sent, and why."""

    def attempt(self) -> bool:
        """Send what is new. False when something failed."""
        try:
            done = self._projector.project()
        except Exception as error:  # noqa: BLE001 - whatever a server or its client does, shipping goes on
            self._failed(error)
            return False
        self._back()
        self.report.add(done)
        for message in done.errors:
            _log.error("%s", message)
        return not done.errors

    def _failed(self, error: Exception) -> None:
        """In full the first time, in a line where it fails otherwise than before; a server that stays away is not news."""
        first = str(error).splitlines()[0] if str(error) else ""
        self.report.errors = [hide_credentials(f"{type(error).__name__}: {first}")]
        kind = type(error).__name__
        if self._away is None:
            self._away = kind, time.monotonic()
            _log.exception(
                "could not write to %s; tried again until it is back", without_credentials(self.tracking_uri)
            )
        elif kind != self._away[0]:
            self._away = kind, self._away[1]
            _log.error("still could not write to %s: %s", without_credentials(self.tracking_uri), self.report.errors[0])

    def _back(self) -> None:
        if self._away is not None:
            away_s = time.monotonic() - self._away[1]
            _log.warning("%s is back after %.0f s", without_credentials(self.tracking_uri), away_s)
            self._away = None

    def follow(
        self, stop: threading.Event, poll_s: float = POLL_S, orphaned: Callable[[], bool] = lambda: False
    ) -> ShipReport:
        """Until `stop` is set; then everything that is left."""
        pause = poll_s
        while not stop.wait(pause):
            pause = poll_s if self.attempt() else min(2 * pause, MAX_PAUSE_S)
        return self.finish(orphaned=orphaned)

    def finish(self, attempts: int = LAST_ATTEMPTS, orphaned: Callable[[], bool] = lambda: False) -> ShipReport:
        """Send everything that is left, with a few attempts; once `orphaned`, no further one."""
        for number in range(attempts):
            if self.attempt() or orphaned():
                break
            if number + 1 < attempts:
                threading.Event().wait(2.0**number)
        return self.report


def ship_once(storage: Storage, study: str, tracking_uri: str, *, attempts: int = LAST_ATTEMPTS) -> ShipReport:
    """Bring MLflow up to date with a study, in this process. Errors are in the report, not raised."""
    return Shipper(storage, study, tracking_uri).finish(attempts)


class BackgroundShipper:
    """The shipping process of a study, seen from the driver. `finish` waits for the rest to be sent."""

    def __init__(self, storage: Storage, study: str, tracking_uri: str) -> None:
        self.log = log_path(storage, study, tracking_uri)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        arguments = ["--storage", storage.uri, "--study", study, "--follow"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "simlap.record.ship", *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                env=os.environ | {"MLFLOW_TRACKING_URI": tracking_uri},  # not an argument: it may hold a password
                start_new_session=True,  # Ctrl-C is for the driver, which then ends this process in order
            )  # fmt: skip
        self.report: ShipReport | None = None

    def finish(self, timeout_s: float = 120.0) -> ShipReport:
        """Let it send the rest and end. After `timeout_s` it is stopped, and the report says what to do."""
        if self.report is None:
            try:
                output, _ = self._process.communicate(timeout=timeout_s)  # closes its standard input
                self.report = ShipReport(**json.loads(output.splitlines()[-1]))
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
                self.report = ShipReport(errors=[f"not finished after {timeout_s:.0f} s"], log=str(self.log))
            except (IndexError, ValueError, TypeError):
                code = self._process.returncode
                self.report = ShipReport(errors=[f"the shipping process ended with code {code}"], log=str(self.log))
        return self.report

    def abandon(self) -> None:
        """End it at once: another launch ships the study now."""
        if self.report is None:
            self._process.kill()
            self._process.communicate()
            self.report = ShipReport(log=str(self.log))

    def __enter__(self) -> BackgroundShipper:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()


def log_path(storage: Storage, study: str, tracking_uri: str) -> Path:
    """The log file on this machine: beside the cursor, or in the temporary folder where the storage is elsewhere."""
    name = f"{uri_hash(tracking_uri)}.log"
    local = storage.local_path(f"studies/{study}/mlflow/{name}")
    return local or Path(tempfile.gettempdir(), f"simlap-{study}-{name}")


def main(argv: list[str] | None = None) -> int:
    """Prints one line: the report as JSON. Exit code 1 when MLflow lacks something."""
    parser = argparse.ArgumentParser(prog="python -m simlap.record.ship", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--storage", required=True, help="folder or URI that holds studies/ and cells/")
    parser.add_argument("--study", required=True, help="name of the study")
    given = os.environ.get("MLFLOW_TRACKING_URI")
    text = "resolved MLflow tracking URI (default: MLFLOW_TRACKING_URI)"
    parser.add_argument("--tracking-uri", required=not given, default=given, help=text)
    parser.add_argument("--follow", action="store_true", help="keep sending until standard input closes")
    parser.add_argument("--poll", type=float, default=POLL_S, help="seconds between two looks at the journal")
    options = parser.parse_args(argv)

    storage = Storage(options.storage)
    log = log_path(storage, options.study, options.tracking_uri)
    answers = _silence(log)
    shipper = Shipper(storage, options.study, options.tracking_uri)
    shipper.report.log = str(log)
    if options.follow:
        os.nice(10)  # training comes first
        parent = os.getppid()
        report = shipper.follow(_stop_event(parent), options.poll, lambda: os.getppid() != parent)
    else:
        report = shipper.finish()
    try:
        answers.write(json.dumps(asdict(report)).encode() + b"\n")
        answers.flush()
    except BrokenPipeError:
        _log.error("ended without a parent to report to%s", f": {report.errors[0]}" if report.errors else "")
    return 1 if report.errors else 0


class _WithoutCredentials(logging.Formatter):
    """Messages and tracebacks of others may quote an address with its password."""

    def format(self, record: logging.LogRecord) -> str:
        return hide_credentials(super().format(record))


def _silence(log: Path) -> BinaryIO:
    """Send all output (MLflow's, Alembic's, of C libraries) to the log. Returns the real standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    log.parent.mkdir(parents=True, exist_ok=True)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    for descriptor in (1, 2):
        os.dup2(target, descriptor)
    sys.stdout, sys.stderr = (cast("TextIO", HidingStream(stream)) for stream in (sys.stdout, sys.stderr))
    handler = logging.FileHandler(log)
    handler.setFormatter(_WithoutCredentials("%(asctime)s %(levelname)s %(message)s"))
    _log.addHandler(handler)
    _log.propagate = False
    return answers


def _stop_event(parent: int) -> threading.Event:
    """Set when standard input (a pipe) closes, the parent dies, or on SIGTERM. SIGINT is for the driver."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch_parent() -> None:
        while not stop.wait(1.0):
            if os.getppid() != parent:
                stop.set()

    def watch_input() -> None:
        while os.read(0, 4096):
            continue
        stop.set()

    threading.Thread(target=watch_parent, daemon=True).start()
    mode = os.fstat(0).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        threading.Thread(target=watch_input, daemon=True).start()
    return stop


if __name__ == "__main__":
    sys.exit(main())
