"""Faults of hosts: of processes on them, of their power, of their cables, of the head; and how long each was felt.

What is measured is read from the journals afterwards: every row has a time, and all hosts have this machine's clock.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, get_args

from simlap.record.journal import cell_storage, read_rows
from simlap.storage import Storage
from tests.chaos.cluster import ACTOR, WORKER
from tests.chaos.hosts import HEAD, Hosts
from tests.chaos.kills import Driver, Killed, Launch, Planned
from tests.chaos.record import Journals
from tests.chaos.study import Size

HostKind = Literal["worker", "actor", "raylet", "host", "cut", "driver", "head"]
HOST_KINDS: tuple[HostKind, ...] = get_args(HostKind)
WHAT: dict[str, str] = {
    "worker": "a worker of a Train group of two",
    "actor": "a process of Tune's: a warm actor, or the driver of a worker group",
    "raylet": "the raylet of a host; then the host is booted anew",
    "host": "a host is powered off, and on again",
    "cut": "a host's cable is pulled until its loss was noticed, then put back; Ray is started there anew",
    "driver": "the `simlap` process, which is started again",
    "head": "all of Ray on the head; the command ends by itself, and the same one is given to a new cluster",
}
NOTICED_S = {"cut": 20.0}
"""At most so long until a loss is noticed: of a cut link, with the settings of `docs/reliability.md`."""
NOTICED_DEFAULT_S = 10.0
CUT_WITH_DEFAULTS_S = 75.0
TRAINS_AGAIN_S = 120.0
REDONE = 2
"""Checkpoint intervals, at most."""

_RAYLET = ("raylet",)
_UNHEARD_S = 100.0
_GONE_S = 60.0


@dataclass(frozen=True)
class Felt:
    """What a fault did to one run."""

    cell_id: str
    attempt: int
    noticed_s: float | None
    """Until its attempt was known to be over, or another one had begun; None: it came to its end all the same."""
    again_s: float | None = None
    """Until the next attempt had trained an epoch, or had evaluated the last one."""
    redone: int = 0
    """Epochs that were trained twice."""


class OnHosts:
    """The scene of hosts.

    Args:
        hosts: that run.
        groups: ids of the runs of several workers, which lose all of them with one.
    """

    def __init__(self, hosts: Hosts, groups: Sequence[str]) -> None:
        self._hosts, self._groups = hosts, set(groups)
        self._gone: set[tuple[str, int]] = set()
        """Attempts that a fault has ended already, whether or not somebody has written so: no other fault hits them."""
        self.ended_s: list[float] = []
        """How long the command took to end by itself, whenever the head was killed."""
        self.last_words: list[str] = []
        """What it printed last then."""

    def launch(self, words: Sequence[str], folder: Path, log: IO[bytes]) -> Launch:
        command = [sys.executable, "-m", "simlap.cli", *words, "--address", self._hosts.address]
        return self._hosts.popen(
            HEAD, *command, cwd=folder, stdout=log, stderr=log, environment={"OMP_NUM_THREADS": "1"}
        )

    def strike(
        self, kind: str, driver: Driver, journals: Journals, rng: random.Random
    ) -> tuple[str, list[tuple[str, int]]] | None:
        made = self._strike(kind, driver, journals, rng)
        if made is not None:
            self._gone |= set(made[1])
        return made

    def _strike(
        self, kind: str, driver: Driver, journals: Journals, rng: random.Random
    ) -> tuple[str, list[tuple[str, int]]] | None:
        hosts = self._hosts
        if kind == "driver":
            victim, hit = f"launch {driver.launches}", self._unfinished(journals)
            driver.kill_and_restart()
            return victim, hit
        if kind == "head":
            victim, hit = f"launch {driver.launches} on it", self._unfinished(journals)
            self._lose_head(driver)
            return victim, hit
        if kind in ("worker", "actor"):
            unfinished = self._unfinished(journals)
            found = hosts.kill(ACTOR if kind == "actor" else WORKER, rng, [HEAD, *hosts.workers])
            if found is None:
                return None
            host, _, title = found
            group = kind == "worker" or "ImplicitFunc" in title
            hit = (
                [(cell, attempt) for cell, attempt in unfinished if cell in self._groups]
                if group
                else self._on(host, journals)
            )
            return f"{title} on {host}", hit
        at_work = [host for host in hosts.workers if self._on(host, journals)]
        if not at_work:
            return None
        host = rng.choice(at_work)
        hit = self._on(host, journals)
        match kind:
            case "raylet":
                assert hosts.kill(_RAYLET, rng, [host]) is not None, f"{host} has no raylet"
            case "host":
                hosts.power_off(host)
                hosts.boot(host)
            case "cut":
                self._cut(host, hit, journals)
        if kind == "raylet":
            _wait(
                lambda: not hosts.find(("ray::",), [host]),
                _GONE_S,
                f"what the raylet of {host} had started does not end",
            )
        hosts.restart(host) if kind != "host" else hosts.start_worker(host)
        return host, hit

    def _cut(self, host: str, hit: list[tuple[str, int]], journals: Journals) -> None:
        """Until it was noticed; then the raylet learns that it was given up, and ends."""
        self._hosts.cut(host)
        try:
            _wait(lambda: _are_over(hit, journals), _UNHEARD_S, f"the loss of {host} is not noticed")
        finally:
            self._hosts.mend(host)
        _wait(lambda: not self._hosts.find(_RAYLET, [host]), _GONE_S, f"the raylet of {host} does not end")

    def _lose_head(self, driver: Driver) -> None:
        hosts = self._hosts
        for _, process, _ in hosts.find(("gcs_server", "raylet"), [HEAD]):
            process.kill()
        began = time.monotonic()
        _wait(lambda: driver.ended() is not None, _UNHEARD_S, "the command does not end")
        self.ended_s.append(time.monotonic() - began)
        self.last_words.append(driver.said())
        for host in (HEAD, *hosts.workers):
            hosts.power_off(host)
            hosts.boot(host)
        hosts.start_head()
        for host in hosts.workers:
            hosts.start_worker(host)
        driver.start()

    def _unfinished(self, journals: Journals) -> list[tuple[str, int]]:
        return [one for one in journals.unfinished() if one not in self._gone]

    def _on(self, host: str, journals: Journals) -> list[tuple[str, int]]:
        """The runs that lose something with a host."""
        return [
            (cell, attempt)
            for cell, attempt in self._unfinished(journals)
            if cell in self._groups or journals.cells[cell].hosts[attempt] == host
        ]


def _are_over(hit: list[tuple[str, int]], journals: Journals) -> bool:
    journals.look()
    seen = journals.cells
    return all(attempt in seen[cell].ended or max(seen[cell].attempts) > attempt for cell, attempt in hit)


def _wait(condition: Callable[[], bool], seconds: float, complaint: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{complaint} within {seconds:.0f} s")
        time.sleep(0.1)


def schedule_on_hosts(seed: int, kinds: Sequence[str], size: Size, latest: int | None = None) -> list[Planned]:
    """A fault of each of these kinds at random epochs; a worker's while there are stages. None is after `latest` epochs (default:
    60 % of all), for what is not hit trains on while hosts are booted."""
    rng = random.Random(seed)
    latest = int(0.6 * size.in_all) if latest is None else latest
    ends = [min(latest, size.in_stages - 2) if kind == "worker" else latest for kind in kinds]
    found = [Planned(kind, rng.randint(1, end), rng.uniform(0.0, 2.0)) for kind, end in zip(kinds, ends, strict=True)]
    return sorted(found, key=lambda fault: fault.epochs)


def felt(fault: Killed, runs: Path) -> list[Felt]:
    """What a fault did to the runs that it hit."""
    return [
        _felt(read_rows(cell_storage(Storage(runs), cell)), cell, attempt, fault.at_ms) for cell, attempt in fault.hit
    ]


def _felt(rows: list[dict[str, object]], cell: str, attempt: int, at_ms: int) -> Felt:
    own = [row for row in rows if row["attempt"] == attempt]
    later = [row for row in rows if int(str(row["attempt"])) > attempt]
    if any(row["type"] == "end" and row["state"] == "done" for row in own) or not later:
        return Felt(cell, attempt, None)
    over = [_seconds(row, at_ms) for row in own if row["type"] == "end"] + [_seconds(later[0], at_ms)]
    again = next(row for row in later if row["type"] == "metrics" or (row["type"] == "end" and row["state"] == "done"))
    started = next(row for row in later if row["type"] == "start")
    reached = max((int(str(row["epoch"])) for row in own if row["type"] == "metrics"), default=0)
    before = next((int(str(row["from_epoch"])) for row in own if row["type"] == "start"), 0)
    redone = max(max(reached, before) - int(str(started["from_epoch"])), 0)
    return Felt(cell, attempt, min(over), _seconds(again, at_ms), redone)


def _seconds(row: dict[str, object], at_ms: int) -> float:
    return (int(str(row["t"])) - at_ms) / 1000


def shortcomings(fault: Killed, runs: Path, *, cut_s: float = NOTICED_S["cut"]) -> list[str]:
    """Which of the promises a fault has shown not to hold. What a driver leaves is noticed by whoever starts it again."""
    found = []
    for one in felt(fault, runs):
        name = f"{fault.kind} at {fault.second:.0f} s, run {one.cell_id[:8]}"
        limit = cut_s if fault.kind == "cut" else NOTICED_DEFAULT_S
        if fault.kind not in ("driver", "head") and one.noticed_s is not None and one.noticed_s > limit:
            found.append(f"{name}: noticed after {one.noticed_s:.1f} s, not {limit:.0f}")
        if fault.kind != "head" and one.again_s is not None and one.again_s > TRAINS_AGAIN_S:
            found.append(f"{name}: trained again after {one.again_s:.0f} s, not {TRAINS_AGAIN_S:.0f}")
        if one.redone > REDONE:
            found.append(f"{name}: {one.redone} epochs trained twice, more than {REDONE}")
    return found
