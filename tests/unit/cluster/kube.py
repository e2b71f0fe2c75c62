"""The files of cluster/kuberay as trees, and what is asked of them in more than one test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import simlap

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "cluster/kuberay"
IMAGE = ROOT / "cluster/image"
FILES = sorted(FOLDER.glob("*.yaml"))
PAGES = [FOLDER / "README.md", IMAGE / "README.md"]
OURS = f"simlap:{simlap.__version__}-cpu"


@cache
def documents(kind: str = "") -> list[tuple[str, dict[str, Any]]]:
    """All documents of a kind with a name for each; `Ray`: of both of Ray's kinds."""
    found = [(path.name, document) for path in FILES for document in yaml.safe_load_all(path.read_text())]
    return [
        (f"{name} {document['kind']}", document)
        for name, document in found
        if document["kind"] == kind or not kind or (kind == "Ray" and document["kind"].startswith("Ray"))
    ]


def each(kind: str = "") -> pytest.MarkDecorator:
    return pytest.mark.parametrize("document", [pytest.param(found, id=name) for name, found in documents(kind)])


def below(tree: Any, key: str) -> Iterator[dict[str, Any]]:
    """Every mapping of the tree that has this key."""
    if isinstance(tree, dict):
        if key in tree:
            yield tree
        for value in tree.values():
            yield from below(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from below(value, key)


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [container for pod in below(document, "containers") for container in pod["containers"]]


def ray_pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod specs of head and workers, in that order."""
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def environment(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in container.get("env", [])}


def amount(text: str | int) -> float:
    """A quantity of Kubernetes' as a number."""
    number, unit = re.fullmatch(r"([\d.]+)(m|[KMGT]i)?", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * {None: 1.0, "m": 1e-3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}[unit]
