"""SIGTERM: the machine is about to be taken away (a spot instance, a batch system, a pod that is moved).

What is under way is asked to save and stop, as Ctrl-C would, and says in the end that it was preempted.
"""

from __future__ import annotations

import signal
from types import FrameType

PREEMPTED = "preempted"
"""Why a run is interrupted that was told so; also the content of its stop request."""

_told = _listening = False


def listen() -> None:
    """From now on SIGTERM is a notice. Call it in the main thread."""
    global _listening
    _listening = True
    signal.signal(signal.SIGTERM, _notice)


def listen_again() -> None:
    """After a library has taken SIGTERM for itself. Nothing where nobody listened."""
    if _listening:
        listen()


def is_preempted() -> bool:
    """Whether there was one."""
    return _told


def _notice(number: int, frame: FrameType | None) -> None:
    """Interrupt whoever listens to Ctrl-C now; a second notice finds it saving."""
    global _told
    if _told:
        return
    _told = True
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # of a shell's background job
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)
