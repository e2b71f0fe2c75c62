"""Hosts made of namespaces on one machine: each with an address, processes, mounts and a name of its own, and a raylet.

`with Hosts(2) as hosts: ...` gives a head `h0` without CPUs and workers `h1`, `h2` of one CPU, all on a switch that leads nowhere
else. A host can be powered off, its cable pulled, its processes killed. Files are this machine's, except where Ray keeps its own,
and the folders that are asked for as a host's own: those are other ones on each host, at the same path. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from tests.chaos.cluster import SETTINGS
from tests.chaos.namespaces import Command, Switch, die_with_parent, pid_space

ROOT = Path(__file__).resolve().parents[2]
HEAD = "h0"
STORE = "s3"
"""A host without Ray, for whatever serves the others."""
DEFAULTS: dict[str, str] = {}
"""Ray's own."""

_RAY = (sys.executable, "-m", "ray.scripts.scripts")
_NET = "10.77.0."
_PORT = 6379
_TRIES = 4
_START_S = 90.0
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_memory_monitor_refresh_ms": "0",
}
"""As `cluster/slurm/ray.sh` sets them."""


class Hosts:
    """See above.

    Args:
        workers: so many besides the head, named h1, h2, ...
        settings: of the head's Ray.
        own: folders that every host has a different one of.
        bare: hosts that have no simlap, until they are booted again.
    """

    def __init__(
        self,
        workers: int,
        *,
        settings: Mapping[str, str] = SETTINGS,
        own: Sequence[Path] = (),
        bare: Sequence[str] = (),
    ) -> None:
        self.workers = [f"h{number}" for number in range(1, workers + 1)]
        self._settings = settings
        self._own = list(own)
        self._bare = set(bare)
        addresses = {host: self.ip(host) for host in (HEAD, *self.workers, STORE)}
        self._switch = Switch(f"slh{os.getpid()}-", addresses)
        self._inits: dict[str, psutil.Process] = {}

    def __enter__(self) -> Hosts:
        self.folder = Path(tempfile.mkdtemp(prefix="slh-", dir="/tmp"))  # paths of sockets are short
        try:
            self._token = self.folder / "token"
            self._token.touch(0o600)
            self._token.write_text(secrets.token_hex(32))
            self._switch.connect()
            for host in (HEAD, *self.workers):
                self.boot(host, bare=host in self._bare)
            self.start_head()
            for host in self.workers:
                self.start_worker(host)
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tear_down()

    @property
    def address(self) -> str:
        """Of the cluster."""
        return f"{self.ip(HEAD)}:{_PORT}"

    def ip(self, host: str) -> str:
        return f"{_NET}{9 if host == STORE else 10 + int(host[1:])}"

    # --- power and cables ------------------------------------------------------------------------------------------------

    def boot(self, host: str, *, bare: bool = False) -> None:
        """Power on: process 1 alone. `bare`: the host has no simlap."""
        (self._bare.add if bare else self._bare.discard)(host)
        installed = [
            folder for folder in (Path(place) / "simlap" for place in sys.path) if (folder / "__init__.py").exists()
        ]
        hidden = dict.fromkeys([ROOT / "simlap", *installed]) if bare else {}
        ray = self.folder / "ray"
        own = self.folder / host
        shutil.rmtree(own, ignore_errors=True)  # a disk of its own, and a new one
        binds = [(own / "ray", ray), *((own / f"own{number}", folder) for number, folder in enumerate(self._own))]
        for source, target in binds:
            source.mkdir(parents=True)
            target.mkdir(parents=True, exist_ok=True)
        commands = [
            f"hostname {host}",
            *(f"mount --bind {shlex.quote(str(source))} {shlex.quote(str(target))}" for source, target in binds),
            *(f"mount -t tmpfs none {shlex.quote(str(folder))}" for folder in hidden),
            f"exec {shlex.quote(sys.executable)} -I -S {shlex.quote(str(ROOT / 'tests/chaos/init.py'))}",
        ]
        namespaces = shlex.split("unshare --mount --pid --uts --fork --mount-proc --kill-child")
        power = subprocess.Popen(
            ["nsenter", f"--net={self._switch.path(host)}", *namespaces, "sh", "-ec", "; ".join(commands)],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - a system call, and nothing of Python's
        )
        end = time.monotonic() + 10
        while True:
            children = psutil.Process(power.pid).children() if power.poll() is None else []
            if children and any(word.endswith("init.py") for word in children[0].cmdline()):
                break
            if power.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{host} does not boot: {power.communicate()[1]!r}")
            time.sleep(0.02)
        self._inits[host] = children[0]

    def power_off(self, host: str) -> None:
        """At once: the kernel kills all that runs there."""
        init = self._inits.pop(host, None)
        if init is not None:
            parent = init.parent()
            with contextlib.suppress(psutil.NoSuchProcess):
                init.kill()
            if parent is not None:  # nsenter, that has become unshare
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(parent.pid, 0)

    def cut(self, host: str) -> None:
        """Pull the cable: nobody is told that a connection has ended."""
        self._switch.plug(host, on=False)

    def mend(self, host: str) -> None:
        self._switch.plug(host, on=True)

    # --- Ray -------------------------------------------------------------------------------------------------------------

    def start_head(self) -> None:
        self._start_ray(
            HEAD, "--head", f"--port={_PORT}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={self.folder}/ray"
        )  # fmt: skip

    def start_worker(self, host: str) -> None:
        """Start a raylet. One at a time: a raylet whose agent takes over 15 s to come up dies of it (ray #65983), which on a
        loaded machine it does; then it is tried again on a host that has just been booted."""
        self._start_ray(host, f"--address={self.address}", "--num-cpus=1")

    def restart(self, host: str) -> None:
        """Power a worker off and on, with Ray."""
        self.power_off(host)
        self.boot(host)
        self.start_worker(host)

    def _start_ray(self, host: str, *options: str) -> None:
        for number in range(_TRIES):
            if number:
                self.power_off(host)
                self.boot(host, bare=host in self._bare)
            done = self.call(
                host,
                *_RAY, "start", *options, f"--node-ip-address={self.ip(host)}", "--object-store-memory=100000000",
                "--disable-usage-stats",
                timeout=_START_S,
            )  # fmt: skip
            if done.returncode == 0:
                return
        raise RuntimeError(
            f"Ray does not start on {host}, tried {_TRIES} times:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        )

    # --- processes -------------------------------------------------------------------------------------------------------

    def popen(self, host: str, *command: str, environment: Mapping[str, str] | None = None, **options: Any) -> Command:
        """Start a command on a host. It gets the address and the token of the cluster, and this checkout's simlap."""
        inside = shlex.split(f"nsenter -t {self._inits[host].pid} -m -p -u -n")
        inside.append(f"--wdns={options.pop('cwd', '/')}")
        return Command(
            subprocess.Popen(
                [*inside, *command], env=self._variables(host) | dict(environment or {}), start_new_session=True,
                stdin=subprocess.DEVNULL, **options,
            )
        )  # fmt: skip

    def call(
        self, host: str, *command: str, timeout: float = 600.0, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end. 124 is the exit code of one that was killed after `timeout` seconds."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:  # daemons would hold a pipe open
            process = self.popen(host, *command, stdout=out, stderr=err, **options)
            code = process.wait(timeout)
            if code is None:
                process.kill()
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, 124 if code is None else code, out.read(), err.read())

    def _variables(self, host: str) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS")}
        return {
            **inherited,
            **_QUIET,
            **(self._settings if host == HEAD else {}),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token),
            "GLOO_SOCKET_IFNAME": "eth0",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def processes(self, host: str) -> list[psutil.Process]:
        """All that runs on a host but its first process."""
        init = self._inits.get(host)
        if init is None:
            return []
        space, found = pid_space(init.pid), []
        for process in psutil.process_iter():
            if process.pid != init.pid and pid_space(process.pid) == space:
                found.append(process)
        return found

    def find(
        self, titles: tuple[str, ...], hosts: Sequence[str] | None = None
    ) -> list[tuple[str, psutil.Process, str]]:
        """Processes whose titles begin so: host, process, title. Ray's say what they run."""
        found = []
        for host in self.workers if hosts is None else hosts:
            for process in self.processes(host):
                try:
                    words = process.cmdline()
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    continue
                if words and (words[0].startswith(titles) or words[0].rpartition("/")[2].startswith(titles)):
                    found.append((host, process, words[0]))
        return sorted(found, key=lambda entry: (entry[0], entry[1].pid))

    def kill(
        self, titles: tuple[str, ...], rng: random.Random, hosts: Sequence[str] | None = None
    ) -> tuple[str, int, str] | None:
        """Kill one such process. Returns its host, number and title; None where there is none."""
        found = self.find(titles, hosts)
        if not found:
            return None
        host, process, title = rng.choice(found)
        try:
            process.kill()
        except psutil.NoSuchProcess:  # it has just ended by itself
            return None
        return host, process.pid, title

    def _tear_down(self) -> None:
        for host in list(self._inits):
            self.power_off(host)
        self._switch.remove()
        shutil.rmtree(self.folder, ignore_errors=True)
