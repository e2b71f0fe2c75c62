"""How many cells fit at a time, and how Ray on this machine ends."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest
import ray

from simlap.config.schema import Resources
from simlap.errors import ConfigError
from simlap.run import cluster
from simlap.run.cluster import Node, check_placement


@pytest.mark.parametrize(
    ("nodes", "resources", "slots"),
    [
        ([(8, 0)], {}, 8),
        ([(8, 0)], {"cpus_per_worker": 3}, 2),
        ([(8, 0), (2, 0)], {"workers": 3, "cpus_per_worker": 2}, 1),
        ([(16, 1)], {"gpus_per_worker": 0.25}, 4),
        ([(2, 1)], {"gpus_per_worker": 0.25}, 2),
        ([(16, 1)], {"gpus_per_worker": 0.1}, 10),
        ([(16, 2)], {"gpus_per_worker": 0.4}, 4),
        ([(16, 1), (16, 1)], {"gpus_per_worker": 0.4}, 4),
        ([(16, 4)], {"gpus_per_worker": 1}, 4),
        ([(16, 8)], {"gpus_per_worker": 2, "workers": 2}, 2),
    ],
)
def test_cells_that_fit(nodes: list[tuple[float, float]], resources: dict[str, float], slots: int) -> None:
    assert check_placement(Resources(**resources), [Node(*node) for node in nodes], file="x") == slots  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("resources", "key", "words"),
    [
        ({"workers": 2}, "workers", "can never be placed: the cluster has 1 CPUs and 1 GPUs, room for 1"),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker", "a share of one GPU or a whole number (got 1.5)"),
        ({"gpus_per_worker": 0.5, "workers": 2}, "gpus_per_worker", "two workers on one GPU (got 0.5)"),
        ({"gpus_per_worker": 2}, "workers", "room for 0"),
    ],
)
def test_what_can_never_be_placed(resources: dict[str, float], key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_placement(Resources(**resources), [Node(1, 1)], file="x.yaml")  # type: ignore[arg-type]
    assert caught.value.key == f"resources.{key}"
    assert words in str(caught.value)


def test_what_does_not_end_with_ray_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that hangs in its destructor, and one that ends as it should."""
    monkeypatch.setattr(cluster, "_END_S", 0.1)
    script = tmp_path / "raylet"  # a process has the name of its program
    script.write_text("#!/bin/sh\nsleep 1000 &\nsleep 1000 &\nwait\n")
    script.chmod(0o755)
    raylet = subprocess.Popen([script])
    monkeypatch.setattr(ray, "shutdown", raylet.kill)
    workers: list[psutil.Process] = []
    while len(workers) < 2:
        workers = psutil.Process(raylet.pid).children()
    cluster.end_local()
    raylet.wait()
    assert psutil.wait_procs(workers, timeout=10)[1] == []
