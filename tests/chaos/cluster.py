"""A Ray cluster on this machine whose raylets can be killed one by one, and what runs on it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from types import TracebackType
from typing import Any
from unittest import mock

import psutil

from simlap.run.cluster import quiet_environment

ACTOR = ("ray::CellTrainable", "ray::ImplicitFunc")
"""What Tune starts: warm actors, and the drivers of worker groups. Processes say in their titles what they run."""
WORKER = ("ray::RayTrainWorker", "ray::execute.")
"""What Train starts: the workers of a group."""

SETTINGS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
}
"""For the head: what `docs/reliability.md` says, and the files of `cluster/` set."""


class Raylets:
    """`with Raylets(2) as cluster: ...`: a head without CPUs, and so many nodes of one CPU, each with a raylet of its own.

    The head stays: Ray keeps what it knows in the head's process and survives its loss on no single machine.
    """

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes

    def __enter__(self) -> Raylets:
        quiet_environment()
        from ray.cluster_utils import Cluster

        self._folder = tempfile.mkdtemp(prefix="slk-", dir="/tmp")  # paths of sockets are short
        with mock.patch.dict(os.environ, SETTINGS):
            self._cluster = Cluster(
                initialize_head=True,
                head_node_args={"num_cpus": 0, "temp_dir": self._folder, "include_dashboard": False},
            )
        self._raylets: list[Any] = []
        for _ in range(self._nodes):
            self.add()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def folder(self) -> str:
        """Ray's temporary files."""
        return self._folder

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> None:
        """Start one more node."""
        self._raylets.append(self._cluster.add_node(num_cpus=1))

    def kill_raylet(self, rng: random.Random) -> tuple[int, set[int]]:
        """Kill a node's raylet without a word and start another node. Returns its process and those that it had started."""
        killed = self.lose(rng)
        self.add()
        return killed

    def lose(self, rng: random.Random, of: int | None = None) -> tuple[int, set[int]]:
        """Kill a node's raylet without a word. Returns its process and those that it had started.

        Args:
            rng: chooses the node.
            of: among so many, the oldest (default: all).
        """
        node = rng.choice(self._raylets[:of])
        process = _raylet(node)
        children = {child.pid for child in psutil.Process(process.pid).children()}
        process.kill()
        process.wait()  # a zombie's children would take it for alive
        self._raylets.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)  # its agents; its workers end by themselves
        return process.pid, children

    def kill_process(
        self, titles: tuple[str, ...], rng: random.Random, how: signal.Signals = signal.SIGKILL
    ) -> tuple[int, str] | None:
        """Kill a process of this cluster with one of these titles, or send it another signal. Returns it with its title; None
        where there is none."""
        found = sorted((pid, title) for pid, title in self._processes() if title.startswith(titles))
        if not found:
            return None
        pid, title = rng.choice(found)
        try:
            os.kill(pid, how)
        except ProcessLookupError:  # it has just ended by itself
            return None
        return pid, title

    def _processes(self) -> list[tuple[int, str]]:
        """What the raylets have started: nobody else's."""
        found = []
        for node in (self._cluster.head_node, *self._raylets):
            try:
                children = psutil.Process(_raylet(node).pid).children()
            except psutil.NoSuchProcess:
                continue
            for child in children:
                try:
                    words = child.cmdline()
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    continue
                if words:
                    found.append((child.pid, words[0]))
        return found


def _raylet(node: Any) -> Any:
    (raylet,) = node.all_processes["raylet"]
    return raylet.process
