"""One launch at a time holds a study. The holder beats a counter; a lease whose counter stands still is taken over.

Clocks are never compared: a reader watches whether the counter changes.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from types import TracebackType

from simlap.errors import UserError
from simlap.storage import Storage

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
        if held and not self._dead(held):
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

    def _read(self) -> dict[str, object] | None:
        try:
            lease: dict[str, object] = self.study.read_json("lease.json")
        except FileNotFoundError:
            return None
        return lease

    def _beat(self) -> None:
        self._counter += 1
        self.study.write_json(
            "lease.json",
            {"token": self.token, "counter": self._counter, "host": socket.gethostname(), "pid": os.getpid()},
        )

    def _run(self) -> None:
        while not self._stop.wait(self.beat_s):
            self._beat()

    @staticmethod
    def _dead(held: dict[str, object]) -> bool:
        """True where the holder was a process of this machine that is gone."""
        if held["host"] != socket.gethostname():
            return False
        try:
            os.kill(int(str(held["pid"])), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False
