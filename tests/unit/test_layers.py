"""Who may import what, where import-linter cannot look: parts of external packages, and imports by name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import simlap

ROOT = Path(simlap.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# external package -> the packages of ours that may import it
ALLOWED = {
    "ray.train": ("simlap.run",),
    "ray.tune": ("simlap.study",),
    "ray": ("simlap.run", "simlap.study"),
    "mlflow": ("simlap.record",),
}


def module_name(path: Path) -> str:
    parts = (ROOT.name, *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(source: str) -> set[str]:
    """Absolute dotted names that a module imports anywhere: `from a import b` gives `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {
            "__import__",
            "import_module",
            "importlib.import_module",
        }:
            names.update(
                arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            )
    return names


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def violations(module: str, source: str) -> list[str]:
    return [
        f"{module} imports {name}: only {', '.join(owners)} may"
        for name in sorted(imported_names(source))
        for package, owners in ALLOWED.items()
        if inside(name, package) and not any(inside(module, owner) for owner in owners)
    ]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_stay_on_their_floor(path: Path) -> None:
    assert violations(module_name(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("simlap.train.loop", "import ray.train"),
        ("simlap.train.loop", "def f():\n    from ray import train"),
        ("simlap.train.loop", "import importlib\nimportlib.import_module('ray')"),
        ("simlap.study.execute", "from ray.train import RunConfig"),
        ("simlap.run.launch", "from ray import tune"),
        ("simlap.report.html", "import mlflow.tracking as t"),
        ("simlap.recorder", "from mlflow import MlflowClient"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("simlap.run.launch", "import ray\nfrom ray.train.torch import TorchTrainer"),
        ("simlap.study.execute", "from ray import tune\nimport ray"),
        ("simlap.record.mlflow", "from mlflow import MlflowClient"),
        ("simlap.study.sync", "from simlap.record import mlflow"),
        ("simlap.train.loop", "import rayleigh"),
    ],
)
def test_a_right_import_is_not(module: str, source: str) -> None:
    assert violations(module, source) == []
