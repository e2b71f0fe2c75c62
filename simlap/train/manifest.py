"""The manifest of a checkpoint, which is written last: checksums of its files, and of itself. Without torch."""

from __future__ import annotations

import hashlib
import json
import re

from simlap.storage import Storage

VERSION = 2
"""1: without a checksum of itself."""
SAVED = "saved.json"
"""Beside the checkpoints, once one was complete: from then on a run without a valid one has lost its work."""
FILES = frozenset({"model.safetensors", "optimizer.safetensors", "state.json"})
NAME = re.compile(r"^epoch-(\d{5})-step-(\d{7})-attempt-(\d{4})$")
"""Of a checkpoint's folder."""
DAMAGED = (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError)
"""What reading a damaged checkpoint raises. Any other OSError is the storage's trouble, not the checkpoint's."""


def names(checkpoints: Storage) -> list[str]:
    """Folders of all checkpoints, newest first, valid or not."""
    found = [(m, name) for name in checkpoints.list() if (m := NAME.match(name))]
    return [name for m, name in sorted(found, key=lambda one: [int(part) for part in one[0].groups()], reverse=True)]


def manifest(sums: dict[str, str]) -> bytes:
    """The content of `manifest.json`.

    Args:
        sums: SHA-256 of each of the checkpoint's files.
    """
    content: dict[str, object] = {"schema_version": VERSION, "sha256": sums}
    return _json({**content, "itself": hashlib.sha256(_json(content)).hexdigest()})


def read_verified(checkpoints: Storage, name: str) -> tuple[dict[str, bytes], dict[str, str]]:
    """The files of a checkpoint, each as its manifest says, and their checksums. Raises `DAMAGED`."""
    sums = _sums(checkpoints.read(f"{name}/manifest.json"))
    files = {file: checkpoints.read(f"{name}/{file}") for file in sorted(sums)}
    for file, data in files.items():
        if hashlib.sha256(data).hexdigest() != sums[file]:
            raise ValueError(f"checksum of {file} differs from the manifest's")
    return files, sums


def why(error: Exception) -> str:
    """What is wrong with a checkpoint, of which reading it raised this."""
    if isinstance(error, FileNotFoundError):
        return "a file of it is missing, or it was never completed"
    return str(error) if type(error) is ValueError else f"damaged: {type(error).__name__}: {error}"


def _sums(data: bytes) -> dict[str, str]:
    """Raises unless the manifest is, byte for byte, as it was written."""
    content = json.loads(data)
    version, sums = content["schema_version"], dict(content["sha256"])
    if version not in (1, VERSION):
        raise ValueError(f"its manifest has schema_version {version!r}, this simlap knows 1 and {VERSION}")
    expected = _json({"schema_version": 1, "sha256": sums}) if version == 1 else manifest(sums)
    if data != expected or set(sums) != FILES:
        raise ValueError("the manifest is damaged")
    return sums


def _json(value: object) -> bytes:
    """As `Storage.write_json` writes it."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
