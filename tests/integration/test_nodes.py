"""A cluster of two nodes, one of which has neither the storage nor simlap: told before anything starts, and sent there."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from simlap.record.journal import read_cell
from tests.chaos.cluster import Raylets
from tests.integration.studies import STUDY, Lab

pytestmark = pytest.mark.slow


def can_unshare() -> bool:
    done = subprocess.run(["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True)
    return done.returncode == 0


if not can_unshare():
    pytest.skip("a mount namespace of its own for a node: needs root", allow_module_level=True)


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is another one on the second node."""
    return tmp_path_factory.mktemp("lonely")


@pytest.fixture(scope="module")
def _open_to_all() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield


@pytest.fixture(scope="module")
def cluster(_open_to_all: None, lonely: Path) -> Iterator[Raylets]:
    hidden = [lonely, *(Path(entry) / "simlap" for entry in sys.path if (Path(entry) / "simlap/__init__.py").exists())]
    mounts = [f"mount -t tmpfs none {shlex.quote(str(folder))}" for folder in hidden]
    with Raylets(1) as cluster:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={cluster.address}", "--num-cpus=1"]
        ray += ["--object-store-memory=100000000", "--min-worker-port=0", "--max-worker-port=0", "--block"]
        node = subprocess.Popen(
            ["unshare", "-m", "sh", "-ec", "; ".join([*mounts, f"exec {shlex.join(ray)}"])],
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for_nodes(cluster.address, 3)
            yield cluster
        finally:
            node.send_signal(signal.SIGTERM)  # `ray start --block` ends what it has started
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)


def wait_for_nodes(address: str, number: int) -> None:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # of compiled code

    client = GcsClient(address=address)
    end = time.monotonic() + 90
    while len(client.get_all_node_info()) < number:
        assert time.monotonic() < end, "the second node does not start"
        time.sleep(0.5)


def test_a_storage_of_one_node_is_refused(cluster: Raylets, lonely: Path, tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab", STUDY.replace("train.epochs: 30", "train.epochs: 1").replace("seeds: 2", "seeds: 1"))
    done = lab.run("ablate", "study.yaml", "--address", cluster.address, "--storage", str(lonely / "runs"))
    assert done.returncode == 2, done.stdout + done.stderr
    warned, *lines = done.stderr.strip().splitlines()
    assert warned.startswith(f"open cluster: the Ray cluster at {cluster.address} asks for no token")
    assert lines[0] == "error: the cluster's nodes are not alike"
    assert lines[1].startswith(f"1 of 2 nodes do not share --storage {lonely}/runs with this machine")
    assert "(node " in lines[2]
    assert "FileNotFoundError" in lines[2]
    assert lines[3].startswith("Valid: a folder that all nodes mount at the same path")
    assert not (lonely / "runs/cells").exists()
    assert [path.name for path in (lonely / "runs").iterdir()] == ["studies"], "the markers are gone"

    # one run on a folder that both see, with a worker on each: the second one has its simlap from here
    done = lab.run("run", "base.yaml", "train.epochs=1", "resources.workers=2", "--address", cluster.address)
    assert done.returncode == 0, done.stdout + done.stderr
    sent = list(Path(cluster.folder).glob("session_2*/runtime_resources/py_modules_files/*/simlap/__init__.py"))
    assert sent, "no simlap was sent"
    (cell,) = lab.storage.list("cells")
    assert read_cell(lab.storage, cell).state == "done"
