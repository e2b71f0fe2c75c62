"""One launch at a time holds a study. The holder beats a counter; a lease whose counter stands still is taken over.

Clocks are never compared: a reader watches whether the counter changes. A holder that was stopped, or whose storage hung, looks
at the lease before it writes anything (`Lease.is_lost`); where that is another launch's, it writes nothing more of the study's.
"""

from __future__ import annotations

import logging
import math
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


class LostLeaseError(Exception):
    """Another launch has taken the study over: this one ends. The message is the whole story."""


class Lease:
    """`with Lease(study): ...`. Raises UserError where another launch holds the study."""

    def __init__(self, study: Storage, *, beat_s: float = BEAT_S, polls: int = POLLS) -> None:
        self.study, self.beat_s, self.polls = study, beat_s, polls
        self.token = uuid.uuid4().hex
        self._counter = 0
        self._beaten = math.inf
        """When the counter was last raised, by this process's clock; `inf`: never yet."""
        self._looked = -math.inf
        """When `is_lost` last looked at the storage."""
        self._lost: str | None = None
        """In words, once another launch has taken the study over."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="simlap-lease", daemon=True)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles who asks it; nothing of it is ever restored

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

    def is_lost(self) -> bool:
        """Whether another launch has taken the study over. Who asks before each write needs no beat to have come in between:
        after a silence in which one may have come, the storage is looked at.
        """
        if self._lost is None and self._was_silent() and _now() - self._looked > self.beat_s:
            self._looked = _now()  # a storage that is away is not asked, and waited for, by every one of many writes
            try:
                self._look()
            except OSError as error:  # what cannot be read cannot be written either
                _log.warning("the lease of %s could not be read: %s", self.study.describe(), error)
        return self._lost is not None

    def check(self) -> None:
        """Raises LostLeaseError where another launch has taken the study over."""
        if self.is_lost():
            raise LostLeaseError(
                f"study {self.study.describe()} was taken over by {self._lost} when this launch had not been heard of for "
                f"{self.polls * self.beat_s:g} s (was it stopped, or its storage away?). This one has ended and left its cells "
                "where they are; the other goes on with them"
            )

    def _was_silent(self) -> bool:
        """Whether this launch has not been heard of for half the time that another one waits."""
        return _now() - self._beaten > self.polls * self.beat_s / 2

    def _look(self) -> None:
        """Note it where the lease is another one's now. One that is not there was another's too, which has ended since; unless
        there was no time for that.
        """
        held = self._read()
        if held is not None and held["token"] != self.token:
            self._lost = f"process {held['pid']} on {held['host']}"
        elif held is None and self._was_silent():
            self._lost = "another launch, which has ended since,"

    def _read(self) -> dict[str, Any] | None:
        try:
            lease: dict[str, Any] = self.study.read_json("lease.json")
        except FileNotFoundError:
            return None
        return lease

    def _beat(self) -> None:
        self._counter += 1
        began = _now()
        me = psutil.Process()
        self.study.write_json(
            "lease.json",
            {
                "token": self.token,
                "counter": self._counter,
                "host": socket.gethostname(),
                "pid": me.pid,
                "machine": _machine(),
                "process_started": _started(me),
                "started_in": _STARTED_IN,
            },
        )
        self._beaten = began

    def _run(self) -> None:
        while not self._stop.wait(self.beat_s):
            try:
                self._look()
                if self._lost is not None:
                    _log.error("study %s was taken over by %s", self.study.describe(), self._lost)
                    return
                self._beat()
            except OSError as error:
                _log.warning("the lease of %s could not be renewed, trying again: %s", self.study.describe(), error)


def _now() -> float:
    """Seconds, those of a suspended machine included where the system counts them: others do."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def is_dead(held: dict[str, Any]) -> bool:
    """True where the holder was a process of this machine (and container) that is gone."""
    if held.get("machine") != _machine():
        return False
    try:
        process = psutil.Process(held["pid"])
        # leases of earlier versions have the time of day
        started = _started(process) if held.get("started_in") == _STARTED_IN else process.create_time()
        return bool(started != held["process_started"] or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


_STARTED_IN = "ticks"
_FIELD = 19
"""Of `starttime` in /proc/<pid>/stat, counted after the name."""


def _started(process: psutil.Process) -> float:
    """When a process started, in the kernel's ticks since the machine did: psutil's time of day moves when the clock is set,
    and a launch that is alive would be taken for another process. Raises NoSuchProcess."""
    stat = Path(f"/proc/{process.pid}/stat")
    try:
        return float(stat.read_text().rpartition(")")[2].split()[_FIELD])
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            raise psutil.NoSuchProcess(process.pid) from None
        return process.create_time()  # no Linux


def _machine() -> str:
    """This boot of this machine, and the namespace in which process numbers mean something."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    parts = [socket.gethostname(), boot.read_text().strip() if boot.exists() else str(psutil.boot_time())]
    return " ".join([*parts, str(namespace.readlink())] if namespace.is_symlink() else parts)
