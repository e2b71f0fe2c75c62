"""The head of every cluster that we have files for notices a cut link as `docs/reliability.md` says."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.chaos.cluster import SETTINGS
from tests.unit.cluster.kube import ROOT, each, ray_pods

WORDS = [f"{name}={value}" for name, value in SETTINGS.items()]


def test_as_the_page_says() -> None:
    assert f"export {' '.join(WORDS)}\n" in (ROOT / "docs/reliability.md").read_text()


@each("Ray")
def test_on_kubernetes(document: dict[str, Any]) -> None:
    (container,) = ray_pods(document)[0]["containers"]
    found = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert {name: found.get(name) for name in SETTINGS} == SETTINGS


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_on_rented_machines(cloud: str) -> None:
    tree = yaml.safe_load((ROOT / f"cluster/ray-up/{cloud}.yaml").read_text())
    (start,) = (command for command in tree["head_start_ray_commands"] if "ray start" in command)
    assert f"export {' '.join(WORDS)};" in start.partition("ray start")[0]


def test_on_slurm() -> None:
    script = (ROOT / "cluster/slurm/ray.sh").read_text()
    for name, value in SETTINGS.items():
        assert f'export {name}="${{{name}:-{value}}}"' in script, "one that is set already wins"
