"""Kills at random moments of a study, and whether the study came out as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, Protocol, get_args

import psutil

from simlap.record.journal import cell_storage, read_cell, read_rows
from simlap.storage import Storage
from tests.chaos.cluster import ACTOR, WORKER, Raylets
from tests.chaos.record import Journals, metrics_of
from tests.chaos.study import Size, planned

Kind = Literal["driver", "actor", "worker", "raylet"]
"""The `simlap ablate` process; a process of Tune's; a worker of Train's; a node's raylet."""
KINDS: tuple[Kind, ...] = get_args(Kind)
_POLL_S = 0.1
_LATEST_S = 2.0
"""A kill comes so late after its moment, at most: in the middle of an epoch, of an evaluation, or of a start."""


@dataclass(frozen=True)
class Planned:
    """A kill to come."""

    kind: str
    epochs: int
    """When the study has recorded so many different epochs, of all cells together."""
    delay_s: float
    """So long after that, or when one more is recorded."""


@dataclass
class Killed:
    """A kill that was made."""

    kind: str
    second: float
    """Since the first launch."""
    epochs: int
    """That the study had recorded."""
    victim: str
    hit: list[tuple[str, int]]
    """Cells with their attempts that were running there."""
    recovered_s: float | None = None
    """Until the next new epoch was recorded."""
    at_ms: int = 0
    """When, by this machine's clock."""


@dataclass
class Ran:
    """What came of a disturbed study."""

    killed: list[Killed]
    left: list[Planned]
    """Kills for which there never was a victim."""
    launches: int
    seconds: float
    journals: Journals
    problems: list[str] = field(default_factory=list)
    """Where it did not come out as it should; empty: it did."""


def schedule(seed: int, kills: int, size: Size) -> list[Planned]:
    """So many kills, as many of each kind (the remainder by chance), at random epochs; a worker's while there are stages."""
    rng = random.Random(seed)
    kinds = [*KINDS * (kills // len(KINDS)), *rng.sample(KINDS, kills % len(KINDS))]
    latest = {kind: size.in_stages - 2 if kind == "worker" else size.in_all - 3 for kind in KINDS}
    found = [Planned(kind, rng.randint(0, latest[kind]), rng.uniform(0.0, _LATEST_S)) for kind in kinds]
    return sorted(found, key=lambda kill: kill.epochs)


class Launch(Protocol):
    """The process of a command that runs."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def kill(self) -> None:
        """That process alone, and wait for its end; what it had started has to notice by itself."""


class Scene(Protocol):
    """Where a study runs and is disturbed."""

    def launch(self, words: Sequence[str], folder: Path, log: IO[bytes]) -> Launch:
        """Start `simlap` with these words, in a folder."""

    def strike(
        self, kind: str, driver: Driver, journals: Journals, rng: random.Random
    ) -> tuple[str, list[tuple[str, int]]] | None:
        """Make a fault and undo it. Returns the victim and the cells that ran there; None where there is no victim now."""


def disturb(
    study: Path,
    scene: Scene,
    kills: Sequence[Planned],
    seed: int,
    *,
    timeout_s: float,
    apart: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    words: Sequence[str] | None = None,
    cells: Sequence[str] | None = None,
) -> Ran:
    """Run the study while it is disturbed, a user starting it again whenever its driver was killed.

    Raises AssertionError where a launch ends otherwise than well, or nothing is finished after `timeout_s`.

    Args:
        study: the file, in whose folder it runs.
        scene: where.
        kills: to be made.
        seed: of the choice of victims.
        timeout_s: for all of it.
        apart: a fault comes only when an epoch was recorded after the one before, so that each can be measured.
        tell: told of every fault.
        words: of the command (default: that of the study).
        cells: ids of what it runs (default: the study's).
    """
    runs = study.parent / "runs"
    journals = Journals(runs, cells or [cell.cell_id for cell in planned(study, runs)])
    rng = random.Random(seed + 1)
    left, killed = list(kills), list[Killed]()
    due: dict[Planned, float] = {}
    began = time.monotonic()
    driver = Driver(scene, words or ["ablate", study.name], study.parent)
    try:
        while True:
            journals.look()
            now, epochs = time.monotonic() - began, journals.epochs()
            for made in killed:
                if made.recovered_s is None and epochs > made.epochs:
                    made.recovered_s = now - made.second
            if (code := driver.ended()) is not None:
                if code == 0:
                    break
                raise AssertionError(f"launch {driver.launches} ended with exit code {code}:\n{driver.said()}")
            if now > timeout_s:
                raise AssertionError(f"not finished after {now:.0f} s:\n{driver.said()}")
            for kill in [] if apart and killed and killed[-1].recovered_s is None else left:
                if epochs > kill.epochs or (epochs == kill.epochs and now >= due.setdefault(kill, now + kill.delay_s)):
                    at_ms = time.time_ns() // 1_000_000
                    found = scene.strike(kill.kind, driver, journals, rng)
                    if found is not None:
                        killed.append(Killed(kill.kind, now, epochs, *found, at_ms=at_ms))
                        left.remove(kill)
                        tell(f"{now:.0f} s, {epochs} epochs: {kill.kind}, {found[0]}, {len(found[1])} runs")
                        break
            time.sleep(_POLL_S)
    finally:
        driver.kill()
    return Ran(killed, left, driver.launches, time.monotonic() - began, journals)


def check(ran: Ran, study: Path, undisturbed: Path) -> None:
    """Hold what came out against the runs of the undisturbed study. Fills `problems`."""
    runs = study.parent / "runs"
    here, there = Storage(runs), Storage(undisturbed)
    for cell in planned(study, runs):
        name = f"{cell.line} · seed {cell.seed} ({cell.cell_id})"
        found, expected = read_cell(here, cell.cell_id), read_cell(there, cell.cell_id)
        if found.state != "done":
            ran.problems.append(f"{name} is lost: {found.state} {found.reason or ''}")
            continue
        rows = read_rows(cell_storage(here, cell.cell_id))
        ends = [i for i, row in enumerate(rows) if row["type"] == "end" and row["state"] == "done"]
        if len(ends) != 1 or ends[0] != len(rows) - 1:
            ran.problems.append(f"{name} was run to the end {len(ends)} times, or something was recorded after its end")
        if metrics_of(found) != metrics_of(expected) or found.result != expected.result:
            ran.problems.append(f"{name} has other numbers than undisturbed")
        ours, theirs = (one.child("cells", cell.cell_id).read_json("result.json") for one in (here, there))
        if ours["checkpoint"]["sha256"] != theirs["checkpoint"]["sha256"]:
            ran.problems.append(f"{name} ended in other parameters than undisturbed")
    ran.problems += [f"no victim for a kill of kind {kill.kind} after {kill.epochs} epochs" for kill in ran.left]


class Driver:
    """A command, again and again."""

    def __init__(self, scene: Scene, words: Sequence[str], folder: Path) -> None:
        self._scene, self._words, self._folder = scene, list(words), folder
        self.launches = 0
        self.start()

    def start(self) -> None:
        self.launches += 1
        self.log = self._folder / f"launch-{self.launches}.log"
        again = ["--resume"] if self.launches > 1 and self._words[0] == "run" else []
        with self.log.open("wb") as log:
            self._process = self._scene.launch([*self._words, *again], self._folder, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> int | None:
        return self._process.poll()

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-8000:]

    def kill(self) -> None:
        """The driver alone; what it had started has to notice by itself."""
        self._process.kill()

    def kill_and_restart(self) -> None:
        self.kill()
        self.start()


class _Local:
    """A process on this machine."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class OnRaylets:
    """The scene of one address: kills of `KINDS`."""

    def __init__(self, cluster: Raylets) -> None:
        self._cluster = cluster

    def launch(self, words: Sequence[str], folder: Path, log: IO[bytes]) -> Launch:
        return _Local(
            subprocess.Popen(
                [sys.executable, "-m", "simlap.cli", *words, "--address", self._cluster.address],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
            )
        )

    def strike(
        self, kind: str, driver: Driver, journals: Journals, rng: random.Random
    ) -> tuple[str, list[tuple[str, int]]] | None:
        match kind:
            case "driver":
                victim, hit = f"pid {driver.pid}, launch {driver.launches}", journals.unfinished()
                driver.kill_and_restart()
            case "raylet":
                pid, children = self._cluster.kill_raylet(rng)
                victim, hit = f"pid {pid} with {len(children)} processes", journals.running(children)
            case _:
                process = self._cluster.kill_process(ACTOR if kind == "actor" else WORKER, rng)
                if process is None:
                    return None
                victim, hit = f"pid {process[0]}, {process[1]}", journals.running({process[0]})
                if kind == "worker" or "ImplicitFunc" in process[1]:
                    hit = journals.unfinished()  # one worker's loss, or the driver's, is the whole group's
        return victim, hit


def machine() -> dict[str, object]:
    """Facts of this machine that a result needs beside it."""
    from simlap.record.provenance import collect

    facts = collect()
    return {
        "processor": facts["processor"],
        "cpus": facts["cpus"],
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "platform": facts["platform"],
        "python": facts["python"],
        "torch": facts["packages"]["torch"],
        "ray": facts["packages"]["ray"],
        "git": facts["git"],
    }
