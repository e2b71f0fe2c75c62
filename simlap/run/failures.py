"""Why an attempt at a cell failed, from what it left; and whether to try again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field

from simlap import errors
from simlap.config.schema import Strict
from simlap.errors import UserError

Kind = Literal["user", "out_of_memory", "lost", "no_space", "other"]
"""`user`: the run itself is wrong, and would be again, bit by bit; `out_of_memory`: of its device's share or of the host;
`no_space`: the storage is full, for all others too;
`lost`: its process, node or connection went away; `other`: all else."""
KINDS: tuple[Kind, ...] = get_args(Kind)
LOST_IN_A_ROW = 20
"""So many losses without an epoch in between are no accident any more: they count as `other`."""

_OUT_OF_MEMORY = re.compile(
    r"\b(?:torch(?:\.cuda)?\.)?OutOfMemoryError\b|\bDeviceMemoryError\b|\bCUDA out of memory\b|\bout of GPU memory\b"
    r"|\bMemoryError\b|DefaultCPUAllocator: can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|\bkilled due to the node running low on memory\b|\bdue to memory pressure\b"
)
_LOST = re.compile(
    r"\b(?:RayActorError|ActorDiedError|ActorUnavailableError|WorkerCrashedError|NodeDiedError|LocalRayletDiedError"
    r"|RaySystemError|ObjectLostError|OwnerDiedError|WorkerHealthCheckTimeoutError|WorkerHealthCheckFailedError)\b"
    r"|\bthe (?:actor|process|worker) died\b|\bactor died unexpectedly\b|\bnode .{0,80}\bdied\b|\bpreempt(?:ed|ion)\b"
    r"|\b(?:node|actor)\b.{0,80}\b(?:is dead|unavailable)\b"
    r"|\bSIGTERM\b|\bSIGKILL\b|\bconnection error code\b"
    # workers that were to be placed on a node that had just gone
    r"|\bworker group startup timed out\b|\bWorkerGroupStartup(?:Timeout|Failed)Error\b"
    # what the other workers of a group see of one that died
    r"|\bgloo/.{0,200}(?:closed|reset) by peer|\bncclRemoteError\b|\bremote process exited\b"
    r"|\bworker \d+ \(process \d+\) has ended; worker \d+ waited\b|\bworker \d+ has waited \d+ s for worker\b"
    # or of one that stands still
    r"|\bgloo/.{0,200}timed out waiting\b",
    re.IGNORECASE,
)
_CREATION = "error raised in its creation task"
"""Ray calls an actor dead too whose constructor raised: that is an error like any other."""
_PYTHON = frozenset(
    error.__name__
    for error in (AssertionError, AttributeError, ImportError, IndexError, KeyError, ModuleNotFoundError, NameError,
                  NotImplementedError, TypeError, ValueError, ZeroDivisionError)
)  # fmt: skip
"""What the same code with the same numbers raises again."""
_OWN = frozenset({"DivergedError", "SupersededError"})
"""The same numbers diverge again; and what another process has taken over is that one's to finish."""
_MEMORY = frozenset({"DeviceMemoryError", "HostMemoryError"})
"""Ours, of memory that is full: which of them is known where torch is imported."""
_ERROR_LINE = re.compile(r"^\s*(?:[\w.]+\.)?(?:RayTaskError\()?(\w+(?:Error|Exception|Interrupt))\b", re.MULTILINE)
"""An exception's name at the beginning of a line, as in the last line of a traceback; of Ray's `RayTaskError(X)`, X."""


class Retries(Strict):
    """What is tried again within a launch. Every attempt goes on from the newest checkpoint."""

    out_of_memory: Annotated[int, Field(ge=0, le=8)] = 1
    """Out of memory: so many times with a larger share of the device, each twice the one before, never with another batch."""
    other: Annotated[int, Field(ge=0)] = 2
    """Failures that are neither the run's own fault nor lost processes: so many times."""


def classify(reason: str | None, error: str | None = None) -> Kind:
    """The kind of a failure.

    Args:
        reason: in a line, as the journal has it (`ConfigError: ...`).
        error: the whole text, where there is one: a traceback, or what Ray says of a process that died.
    """
    text = f"{reason or ''}\n{error or ''}"
    named = _exception(reason, error)
    if named != "UserError" and named in _user_errors() | _OWN:
        # what it says may well speak of memory: out of memory is the one user error that is not the user's
        return "out_of_memory" if named in _MEMORY else "user"
    if named == "StorageFullError":
        return "no_space"
    if _OUT_OF_MEMORY.search(text):
        return "out_of_memory"
    if named == "UserError":
        return "user"
    if _LOST.search(text) and _CREATION not in text:
        return "lost"
    return "user" if named in _PYTHON else "other"


@dataclass(frozen=True)
class Decision:
    """What becomes of a cell whose attempt failed."""

    again: bool
    larger: bool = False
    """With a larger share of the device."""
    why: str = ""
    """In words, for the events and the console."""


@dataclass
class History:
    """The failures of one cell in one launch."""

    out_of_memory: int = 0
    other: int = 0
    lost: int = 0
    """In a row, without an epoch in between."""
    reached: int = -1
    """Epochs that were durable at the last failure."""

    def decide(self, kind: Kind, epoch: int, retries: Retries, *, can_grow: bool) -> Decision:
        """Count a failure and say what to do.

        Args:
            kind: of the failure.
            epoch: finished epochs that a checkpoint covers.
            retries: what the study allows.
            can_grow: whether its share of a device can become larger.
        """
        if epoch > self.reached:
            self.lost = 0
        self.reached = max(self.reached, epoch)
        if kind == "lost":
            self.lost += 1
            if self.lost <= LOST_IN_A_ROW:
                return Decision(True, why="its process or node was lost; not counted")
            kind = "other"
        if kind == "user":
            return Decision(False, why="it would fail again")
        if kind == "no_space":
            return Decision(False, why="the storage is full; the launch ends")
        if kind == "out_of_memory":
            self.out_of_memory += 1
            if not can_grow:
                return Decision(False, why="it has a whole device, or none")
            if self.out_of_memory > retries.out_of_memory:
                return Decision(False, why=_tried(self.out_of_memory))
            return Decision(True, larger=True, why="with a larger share of the device")
        self.other += 1
        if self.other > retries.other:
            return Decision(False, why=_tried(self.other))
        return Decision(True, why=f"retry {self.other} of {retries.other}")


def _tried(times: int) -> str:
    return f"tried {times} times" if times > 1 else "no retries"


def _exception(reason: str | None, error: str | None) -> str | None:
    """The name of the exception: that of the reason, or the last one of the traceback."""
    if (named := _ERROR_LINE.match(reason or "")) is not None:
        return named[1]
    found = _ERROR_LINE.findall(error or "")
    return found[-1] if found else None


def _user_errors() -> frozenset[str]:
    def below(kind: type[UserError]) -> Iterator[str]:
        for child in kind.__subclasses__():
            yield child.__name__
            yield from below(child)

    return frozenset({*below(errors.UserError), "UserError", *_MEMORY})
