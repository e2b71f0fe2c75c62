"""One launch at a time holds a study. The holder beats a counter; a lease whose counter stands still is taken over.

Clocks are never compared: a reader watches whether the counter changes.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from simlap.errors import UserError
from simlap.storage import Storage

_log = logging.getLogger("simlap.study")
BEAT_S = 1.0
POLLS = 6


class Lease:
    """`with Lease(study): ...`. Raises UserError where another launch holds the study."""

    def __init__(self, study: Storage, *, beat_s: float = BEAT_S, polls: int = POLLS) -> None:
        self.study, self.beat_s, self.polls = study, beat_s, polls
        self.token = uuid.uuid4().hex
        self._counter = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="simlap-lease", daemon=True)

    def __enter__(self) -> Lease:
        held = self._read()
        if held and not is_dead(held):
            # the holder is on another machine or its process number was given away: watch the counter
            for _ in range(self.polls):
                time.sleep(self.beat_s)
                now = self._read()
                if now is None:
                    break
                if (now["token"], now["counter"]) != (held["token"], held["counter"]):
                    raise UserError(
                        f"study {self.study.describe()} is being run by process {now['pid']} on {now['host']}; "
                        "wait for it, or stop it first"
                    )
        self._beat()
        time.sleep(self.beat_s)
        if (now := self._read()) is None or now["token"] != self.token:
            raise UserError(f"study {self.study.describe()}: another launch started at the same moment; try again")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        held = self._read()
        if held and held["token"] == self.token:
            self.study.delete("lease.json")

    def _read(self) -> dict[str, Any] | None:
        try:
            lease: dict[str, Any] = self.study.read_json("lease.json")
        except FileNotFoundError:
            return None
        return lease

    def _beat(self) -> None:
        self._counter += 1
        me = psutil.Process()
        self.study.write_json(
            "lease.json",
            {
                "token": self.token,
                "counter": self._counter,
                "host": socket.gethostname(),
                "pid": me.pid,
                "machine": _machine(),
                "process_started": me.create_time(),
            },
        )

    def _run(self) -> None:
        while not self._stop.wait(self.beat_s):
            try:
                held = self._read()
                if held is not None and held["token"] != self.token:
                    _log.error("study %s was taken over by process %s", self.study.describe(), held["pid"])
                    return
                self._beat()
            except OSError as error:
                _log.warning("the lease of %s could not be renewed, trying again: %s", self.study.describe(), error)


def is_dead(held: dict[str, Any]) -> bool:
    """True where the holder was a process of this machine (and container) that is gone."""
    if held.get("machine") != _machine():
        return False
    try:
        process = psutil.Process(held["pid"])
        return bool(process.create_time() != held["process_started"] or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _machine() -> str:
    """This boot of this machine, and the namespace in which process numbers mean something."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    parts = [socket.gethostname(), boot.read_text().strip() if boot.exists() else str(psutil.boot_time())]
    return " ".join([*parts, str(namespace.readlink())] if namespace.is_symlink() else parts)
