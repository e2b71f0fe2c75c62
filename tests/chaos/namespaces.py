"""What hosts on one machine are made of: namespaces, joined by a switch that leads nowhere else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

_TOOLS = ("ip", "nsenter", "unshare", "mount", "hostname")
_NAME = re.compile(r"^slh(\d+)-")


def lacking() -> str | None:
    """Why there can be no such hosts on this machine; None: there can."""
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"hosts of namespaces: this machine lacks {', '.join(missing)} (packages iproute2, util-linux, mount, hostname)"
    if os.geteuid() != 0:
        return "hosts of namespaces: needs root"
    probe = shlex.split("unshare --net --mount --pid --uts --fork --mount-proc ip link add br0 type bridge")
    done = subprocess.run(probe, capture_output=True, text=True)
    if done.returncode:
        return f"hosts of namespaces: {shlex.join(probe)} is refused here ({done.stderr.strip()})"
    return None


class Switch:
    """Network namespaces with an interface `eth0` each, joined by a bridge in one of its own.

    Args:
        prefix: of their names: `slh`, this process's number, a dash.
        addresses: by host.
    """

    def __init__(self, prefix: str, addresses: Mapping[str, str]) -> None:
        self._prefix, self._addresses = prefix, dict(addresses)
        self._switch = f"{prefix}sw"

    def connect(self) -> None:
        """Make all of it, once what killed processes have left is taken away."""
        sweep()
        ip("netns", "add", self._switch)
        ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self._switch, "link", "set", "br0", "up")
        for host, address in self._addresses.items():
            space = f"{self._prefix}{host}"
            ip("netns", "add", space)
            ip("link", "add", f"v{host}", "netns", self._switch, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("-n", self._switch, "link", "set", f"v{host}", "master", "br0", "up")
            ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")

    def path(self, host: str) -> str:
        """Of a host's network namespace."""
        return f"/run/netns/{self._prefix}{host}"

    def plug(self, host: str, *, on: bool) -> None:
        """Put a host's cable in, or pull it: nobody is told that a connection has ended."""
        ip("-n", self._switch, "link", "set", f"v{host}", "up" if on else "down")

    def remove(self) -> None:
        """Take all of it away."""
        for host in (*self._addresses, "sw"):
            if Path(self.path(host)).exists():
                ip("netns", "del", f"{self._prefix}{host}")


class Command:
    """A command on a host: nsenter, which waits for it, and the command itself, in whose stead nsenter could not be signalled."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Of nsenter."""
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """The exit code; None where it runs on."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def signal(self, number: int) -> None:
        """Send a signal to the command, not to what it has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children():
                child.send_signal(number)

    def kill(self) -> None:
        if self._process.poll() is None:
            self.signal(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def pid_space(pid: int) -> str:
    """The name of the space in which a process has its number; empty where it has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def ip(*words: str) -> None:
    """`ip` with these words. Raises RuntimeError."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {shlex.join(words)}: {done.stderr.strip()}")


def die_with_parent() -> None:
    """Called by a process that is about to be another program: it is killed when its parent ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def sweep() -> None:
    """Take away the namespaces of earlier processes that were killed."""
    for path in Path("/run/netns").glob("slh*"):
        if (match := _NAME.match(path.name)) and not psutil.pid_exists(int(match[1])):
            ip("netns", "del", path.name)
