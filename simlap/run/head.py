"""Whether the Ray that a command hangs on is still there. Ray itself would let a command wait for a minute, and then end the
process with words of its own that nobody sees; or for ever, where a thread waits for an answer that no process is left to give.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable

POLL_S = 1.0
SAID_S = 4.0
"""So long it may keep silent before that is said."""
LOST_S = 30.0
"""So long before the command ends, where Ray's own setting says nothing else."""
SETTING = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""How long Ray's processes wait for a head that comes back (its state kept in Redis). A command then waits as long."""
_CONNECT_S = 2.0
_EXIT_CODE = 1
_watch: HeadWatch | None = None


class HeadWatch(threading.Thread):
    """Looks whether the addresses take connections; ends the process where one has not for too long.

    A host that is off or cut off takes none, nor does a port whose process has died.

    Args:
        places: name, host and port of what must be there.
        say: shows the user a line.
        end: called with the last words, in place of the end of the process.
        patience_s: how long it may be away.
    """

    def __init__(
        self,
        places: list[tuple[str, str, int]],
        *,
        say: Callable[[str], None],
        end: Callable[[str], None],
        patience_s: float,
    ) -> None:
        super().__init__(name="simlap-head-watch", daemon=True)
        self._places, self._say, self._end, self._patience = places, say, end, patience_s
        self._over = threading.Event()
        self._since: dict[str, float] = {}
        """When each that is away was last there."""
        self._told: set[str] = set()

    def stop(self) -> None:
        self._over.set()

    def run(self) -> None:
        while not self._over.wait(POLL_S):
            for name, host, port in self._places:
                began = time.monotonic()
                there = answers(host, port)
                if self._over.is_set():
                    return
                if not self._judge(name, began, there):
                    return

    def _judge(self, name: str, now: float, there: bool) -> bool:
        """Take note of a look. Returns False where it was the last one."""
        if there:
            since = self._since.pop(name, None)
            if name in self._told and since is not None:
                self._told.discard(name)
                self._say(f"{name} answers again, after {now - since:.0f} s")
            return True
        away = time.monotonic() - self._since.setdefault(name, now)
        if away >= self._patience:
            self._end(f"{name} has not answered for {away:.0f} s")
            return False
        if away >= min(SAID_S, self._patience / 2) and name not in self._told:
            self._told.add(name)
            self._say(f"{name} does not answer; this command waits for it until {self._patience:.0f} s are over")
        return True


def patience() -> float:
    """How long the head may be away, in seconds. Ray's processes end themselves a little later."""
    try:
        asked = float(os.environ[SETTING])
    except (KeyError, ValueError):
        return LOST_S
    return max(0.9 * asked, 1.0)


def watch_head() -> None:
    """Watch the head and this machine's raylet of the cluster that this process is connected to, until `unwatch_head`."""
    import ray

    global _watch
    unwatch_head()
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    places = [
        (f"the head of the Ray cluster at {context.gcs_address}", host.strip("[]"), int(port)),
        ("Ray on this machine", own["NodeManagerAddress"], int(own["NodeManagerPort"])),
    ]
    _watch = HeadWatch(places, say=_say, end=_end, patience_s=patience())
    _watch.start()


def unwatch_head() -> None:
    """Before this process leaves the cluster."""
    global _watch
    if _watch is not None:
        _watch.stop()
        _watch = None


def answers(host: str, port: int) -> bool:
    """Whether something takes connections there."""
    try:
        socket.create_connection((host, port), _CONNECT_S).close()
    except OSError:
        return False
    return True


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


tell: Callable[[str], None] = _print
"""How the user is told: a command that sends standard error elsewhere sets this."""


def _say(text: str) -> None:
    tell(text)  # as it is set then


def _end(text: str) -> None:
    """Leave at once: whatever hangs in Ray could not be interrupted."""
    tell(
        f"error: {text}: this command ends. What is saved holds: the same command goes on from there, on a Ray that runs "
        "(`simlap run` with --resume)"
    )
    if sys.stdout.isatty():
        sys.stdout.write("\x1b[?25h")  # a cursor that was hidden
        sys.stdout.flush()
    os._exit(_EXIT_CODE)
