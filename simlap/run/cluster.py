"""Ray: connecting to a cluster or starting one here, quietly, and checking that what is asked for can ever be placed."""

from __future__ import annotations

import atexit
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from simlap.config.schema import Resources
from simlap.errors import ConfigError, UserError
from simlap.hung import VARIABLE as HUNG
from simlap.hung import hung_s
from simlap.run.access import check_token, make_token
from simlap.run.head import answers, watch_head
from simlap.run.priority import batch_priority

_ANSWER = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
"""How long a worker of Train may take to say that it is there: its main thread has nothing else to do."""
_HEALTH_CHECK = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"

_ENVIRONMENT = {
    # one report per health check: epochs can be short
    _HEALTH_CHECK: "0.2",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    # what a worker prints is in its cell's log, without secrets; Train would keep it once more, with them
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # one more process of every group, for which Train would start a group anew by itself where a node is to be taken away: we do,
    # between two attempts
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Tune: our journal is the record, so no loggers and no snapshots of its own
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # how many cells may wait for an actor at a time is ours to say (`simlap.study.feed`)
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "PYTHONWARNINGS": "ignore",
    # Train runs a worker's loop in a thread of its own, for which glibc would make a heap of its own, in pieces that it gives
    # back after every step: what `simlap.train.memory` asks for holds in the first heap only
    "MALLOC_ARENA_MAX": "1",
}

_OWN_NODE = {
    # Ray gives workers a lower priority (15) than its own processes: each of these, and everything else on the machine, would
    # interrupt a step that all workers wait for
    "RAY_worker_niceness": "0",
    # what only its dashboard shows; every idle actor would go on reporting it
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""Read where a node starts: for Ray on this machine."""

_END_S = 3.0
"""How long Ray's workers on this machine may take to end when Ray does."""


@dataclass(frozen=True)
class Node:
    """What one node has."""

    cpus: float
    gpus: float


def local_node() -> Node:
    """This machine as Ray will see it."""
    import torch

    return Node(float(len(os.sched_getaffinity(0))), float(torch.cuda.device_count()))


def check_placement(resources: Resources, nodes: list[Node], *, file: str, key: str = "resources") -> int:
    """How many cells fit at a time, with all workers or as few as do. Raises ConfigError where not even one ever can."""
    gpus = resources.gpus
    if gpus > 1 and gpus % 1:
        raise ConfigError(
            "must be a share of one GPU or a whole number", file=file, key=f"{key}.gpus_per_worker", value=gpus
        )
    if 0 < gpus < 1 and resources.workers > 1:
        raise ConfigError(
            f"must be whole with {resources.workers} workers: NCCL does not connect two workers on one GPU",
            file=file,
            key=f"{key}.gpus_per_worker",
            value=gpus,
        )
    slots = workers_on(resources, nodes)
    if slots < resources.fewest:
        have = ", ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes) or "nothing"
        raise ConfigError(
            f"{resources.fewest} workers of {resources.cpus_per_worker} CPUs and {gpus:g} GPUs "
            f"can never be placed: the cluster has {have}, room for {slots}",
            file=file,
            key=f"{key}.{'min_workers' if resources.is_elastic else 'workers'}",
            value=resources.fewest,
        )
    return max(1, slots // resources.workers)


def workers_on(resources: Resources, nodes: Iterable[Node]) -> int:
    """How many workers of a run these nodes hold, were they empty."""
    gpus = resources.gpus
    return sum(int(min(node.cpus // resources.cpus_per_worker, _room_on_gpus(node, gpus))) for node in nodes)


def _room_on_gpus(node: Node, gpus_per_worker: float) -> float:
    """How many workers a node's GPUs hold. A share is always one of a single GPU: Ray splits none over two."""
    if gpus_per_worker == 0:
        return float("inf")
    if gpus_per_worker < 1:
        return node.gpus * int(1 / gpus_per_worker + 1e-9)
    return node.gpus // gpus_per_worker


def quiet_environment() -> None:
    """Set what Ray and its workers read from the environment; a value that is already there wins."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault(_ANSWER, str(hung_s()))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # every worker would compile every module anew
    warnings.filterwarnings("ignore")
    logging.getLogger("ray").setLevel(logging.ERROR)


def has_dashboard() -> bool:
    """Whether the cluster that this process is connected to has one, which answers what Ray's state API asks."""
    from ray._private.ray_constants import DASHBOARD_ADDRESS, KV_NAMESPACE_DASHBOARD
    from ray.experimental.internal_kv import _internal_kv_get

    # Ray notes an address where it was told to have no dashboard, too
    host, _, port = (
        (_internal_kv_get(DASHBOARD_ADDRESS, namespace=KV_NAMESPACE_DASHBOARD) or b"").decode().rpartition(":")
    )
    return bool(host) and answers(host.strip("[]"), int(port))


def connect(address: str | None, *, reports: bool = True, ship: Path | None = None) -> list[Node]:
    """Connect to the cluster at `address`, or start Ray here. Returns the alive nodes. Raises UserError.

    Where no worker of Train `reports`, once a second is often enough to ask after them. `ship`: a package whose folder is sent
    to the nodes.
    """
    if not reports:
        os.environ.setdefault(_HEALTH_CHECK, "1")
    quiet_environment()
    import ray

    if not ray.is_initialized():
        for name, value in ({} if address else _OWN_NODE).items():
            os.environ.setdefault(name, value)
        check_token() if address else make_token()
        told = {**_ENVIRONMENT, _ANSWER: os.environ[_ANSWER], HUNG: f"{hung_s():g}"}
        try:
            with ExitStack() as around:
                if address is None:
                    around.enter_context(batch_priority())
                    around.enter_context(_on_loopback())
                ray.init(
                    address=address or "local",  # never a cluster that happens to be around
                    runtime_env={"env_vars": told, **_shipped(ship)} if address else None,
                    num_cpus=None if address else len(os.sched_getaffinity(0)),
                    include_dashboard=None if address else False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
        except (OSError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
            if address is None:
                raise UserError(f"Ray does not start on this machine: {error}") from error
            if isinstance(error, ray.exceptions.AuthenticationError):
                raise UserError(
                    f"--address {address}: the cluster asks for a token that this process does not have; set RAY_AUTH_MODE=token "
                    "and RAY_AUTH_TOKEN_PATH, the file (of mode 0600) with the token that it was started with"
                ) from error
            raise UserError(f"--address {address}: no Ray cluster answers there ({error})") from error
        if address is None:
            _end_log_monitor()
            atexit.register(end_local)
        else:
            watch_head()
    return alive_nodes()


def alive_nodes() -> list[Node]:
    """What the nodes have of the cluster that this process is connected to."""
    import ray

    return [
        Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray that starts meanwhile, and workers' sockets between each other (gloo), are reached from this machine only.

    Ray listens like this by itself where it knows only clusters of one machine: macOS and Windows.
    """
    from ray._private import ray_constants

    names = [name for name, found in psutil.net_if_addrs().items() if any(one.address == "127.0.0.1" for one in found)]
    settings = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
    if names and "GLOO_SOCKET_IFNAME" not in os.environ:
        settings["GLOO_SOCKET_IFNAME"] = names[0]
    before = {name: os.environ.get(name) for name in settings}, ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(settings)  # read by the processes that start
    ray_constants.ENABLE_RAY_CLUSTER = False  # and by this one when it was imported
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[1]
        for name, value in before[0].items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _shipped(package: Path | None) -> dict[str, Any]:
    """What of Ray's runtime environment brings a package to the nodes."""
    return {"py_modules": [str(package)], "excludes": ["**/__pycache__"]} if package else {}


def _end_log_monitor() -> None:
    """It hands on to drivers what workers print, which ours does not want, and looks for it ten times a second."""
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if any(part.endswith("log_monitor.py") for part in child.cmdline()):
                child.terminate()


def end_local() -> None:
    """End Ray on this machine, and whatever of it does not end by itself.

    A worker can hang in its own destructor (Ray 2.60: a Train controller in every third run, in ~CoreWorkerProcessImpl), and
    would hold its memory until somebody finds it.
    """
    import ray

    workers = [worker for child in psutil.Process().children() for worker in _workers(child)]
    ray.shutdown()
    for worker in psutil.wait_procs(workers, timeout=_END_S)[1]:
        with suppress(psutil.NoSuchProcess):
            worker.kill()


def _workers(process: psutil.Process) -> list[psutil.Process]:
    """Those of a raylet, none of another process, or of one that has ended meanwhile."""
    try:
        return process.children(recursive=True) if process.name() == "raylet" else []
    except psutil.NoSuchProcess:
        return []
