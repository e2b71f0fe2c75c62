"""What this machine has looked at before, so that planning need not look again: `$XDG_CACHE_HOME/simlap`.

Only a shortcut: entries are named by everything they depend on, and every one can be found out anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import uuid
from pathlib import Path
from typing import Any

_log = logging.getLogger("simlap.study")
MAX_ENTRIES = 20_000


def folder() -> Path:
    """The user's cache folder, as the XDG base directory specification has it."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "simlap"


class Cache:
    """One file of JSON values by name; the oldest go when there are more than `MAX_ENTRIES`. `save` writes it."""

    def __init__(self, name: str) -> None:
        self._file = str(folder() / f"{name}.json")
        self._entries = _open(self._file)

    def __contains__(self, key: str) -> bool:
        return _name(key) in self._entries

    def __getitem__(self, key: str) -> Any:
        return self._entries[_name(key)]

    def put(self, key: str, value: Any) -> None:
        self._entries[_name(key)] = value
        _changed.add(self._file)


def save() -> None:
    """Write what was found out since the start. A folder that cannot be written costs time on the next occasion, no more."""
    for file in [*_changed]:
        entries = _open(file)
        kept = dict([*entries.items()][-MAX_ENTRIES:])
        temporary = f"{file}.{uuid.uuid4().hex[:8]}"
        try:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(temporary).write_text(json.dumps(kept))
            os.replace(temporary, file)
        except OSError as error:
            _log.debug("%s: %s", file, error)
        _changed.discard(file)


_changed: set[str] = set()


@functools.cache
def _open(file: str) -> dict[str, Any]:
    try:
        entries: dict[str, Any] = json.loads(Path(file).read_bytes())
    except (OSError, ValueError):  # not there yet, or torn by a full disk
        return {}
    return entries


def _name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:24]
