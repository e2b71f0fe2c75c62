"""Notice that a process is about to lose its machine: SIGTERM, with some seconds of grace (Slurm, Kubernetes, spot machines)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

_asked = threading.Event()
_at_work: set[object] = set()
_before: Callable[[int, FrameType | None], Any] | int | None = signal.SIG_DFL


class PreemptedError(RuntimeError):
    """The process was told to end, and has saved what it was at work on: tried again elsewhere, this is no failure."""


def asked() -> bool:
    """Whether this process was told to end."""
    return _asked.is_set()


def listen() -> None:
    """Take SIGTERM for a notice from now on, where something is at work (`AtWork`); without, it does what it did before.

    Only the main thread may; elsewhere nothing happens.
    """
    global _before
    if threading.current_thread() is threading.main_thread() and (now := signal.getsignal(signal.SIGTERM)) is not _note:
        _before = now
        with suppress(ValueError):  # not the main interpreter
            signal.signal(signal.SIGTERM, _note)


class AtWork:
    """`with AtWork(): ...`: there is something to be saved."""

    def __enter__(self) -> AtWork:
        _at_work.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        _at_work.discard(self)


def _note(number: int, frame: FrameType | None) -> None:
    if _at_work:
        _asked.set()
    elif callable(_before):
        _before(number, frame)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
