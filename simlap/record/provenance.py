"""Where a result came from: code, packages, machine, command."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from simlap.config import Experiment
from simlap.config.schema.plugins import origin_of, plugins_in
from simlap.record.code import code_hash, code_of
from simlap.redact import hide_credentials

PACKAGES = ("simlap", "torch", "torchvision", "timm", "ray", "mlflow", "numpy", "pyarrow")


@functools.cache
def collect() -> dict[str, Any]:
    """Facts about this process's code and machine, as JSON-able values."""
    return {
        "git": git_state(),
        "code": code_hash(),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "command": hide_credentials(" ".join(["simlap", *sys.argv[1:]])),
    }


def code_facts(experiment: Experiment) -> dict[str, Any]:
    """What an experiment with plug-ins changes in the facts of `collect`."""
    plugins = plugins_in(experiment.method, "method")
    if not plugins:
        return {}
    return {
        "code": code_of(experiment),
        "plugins": {path: origin_of(plugin).release for path, plugin in plugins.items()},
    }


def git_state() -> dict[str, Any]:
    """Commit and whether the working tree differs from it; empty where the code is not in a git checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {}
    try:
        commit = _git(root, "rev-parse", "HEAD")
        dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError) as error:
        return {"unknown": str(error)}
    return {"commit": commit, "dirty": dirty}


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
