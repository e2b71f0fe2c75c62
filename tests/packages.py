"""Packages installed by hand: modules and a dist-info folder on the path, as an installer leaves them, without one."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from simlap.config.schema import plugins
from simlap.record import code

ROOT = Path(__file__).resolve().parents[1]
_NAMED = re.compile(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def install(
    folder: Path, name: str, files: Mapping[str, str], entry_points: Mapping[str, Mapping[str, str]], version: str = "1.0"
) -> None:  # fmt: skip
    """Write a distribution.

    Args:
        folder: that is, or will be, on the path.
        name: of the distribution.
        files: source by path.
        entry_points: value by name by group.
        version: of the distribution.
    """
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, entries in entry_points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join([*lines, ""]))


def documented() -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Files and entry points of the example in docs/plugins.md."""
    import tomllib

    files = dict(_NAMED.findall((ROOT / "docs/plugins.md").read_text()))
    project = tomllib.loads(files.pop("pyproject.toml"))["project"]
    return {"simlap_bands/__init__.py": "", **files}, project["entry-points"]


def install_documented(folder: Path, version: str = "1.0") -> None:
    install(folder, "simlap-bands", *documented(), version=version)


def use(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Put the folder on the path, of processes to be started too, and forget what was known of packages."""
    folder.mkdir(parents=True, exist_ok=True)
    patch.syspath_prepend(str(folder))
    patch.setenv(
        "PYTHONPATH", os.pathsep.join(part for part in (str(folder), os.environ.get("PYTHONPATH", "")) if part)
    )
    refresh(folder)


def refresh(folder: Path) -> None:
    """Take notice of what is installed in a folder now."""
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None) or "").startswith(f"{folder}{os.sep}"):
            del sys.modules[name]
    importlib.invalidate_caches()
    for known in (plugins._entry_points, plugins._settings, code._hash_of_roots):
        known.cache_clear()
