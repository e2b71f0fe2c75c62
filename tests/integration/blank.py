"""A tracking store with its tables and nothing else, made once: making them takes longer than most tests that need one."""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock


def blank_store() -> bytes:
    """The content of an empty `mlflow.db`, shared by all of pytest's processes of this user, and by later ones."""
    folder = Path(tempfile.gettempdir(), f"simlap-tests-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    kept = folder / f"mlflow-{version('mlflow')}.db"
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            from mlflow import MlflowClient

            made = folder / f"{os.getpid()}.db"
            client = MlflowClient(f"sqlite:///{made}")
            client.search_experiments()
            client.search_registered_models()
            os.replace(made, kept)
    return kept.read_bytes()
