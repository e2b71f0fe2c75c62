"""What has already reached a tracking store. A shortcut: lost, it is rebuilt from the store's tags and histories."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from simlap.record.tracking.records import RunPlan
from simlap.record.tracking.uri import holds_runs, uri_hash, without_credentials
from simlap.redact import hide_credentials
from simlap.storage import Storage

SCHEMA_VERSION = 1


@dataclass
class Entry:
    """One run as the store holds it."""

    run_id: str
    epoch: int = 0
    """Epochs up to this one are there."""
    digest: str = ""
    """`RunPlan.digest` at the last complete projection; empty while it is incomplete."""
    artifacts: dict[str, str] = field(default_factory=dict)
    """Stamps by artefact path."""
    dataset: str = ""
    """Digest of the logged dataset."""
    model: str = ""
    """Id of the logged model, or `missing`."""
    history_unknown: bool = False
    """Found by its tag: which epochs are there must be asked."""
    removed: bool = False
    """Marked as no longer part of the study."""


@dataclass
class Cursor:
    """Entries by run key, kept in the storage beside the study (or run) they project."""

    path: str
    experiment_id: str = ""
    runs: dict[str, Entry] = field(default_factory=dict)
    _saved_at: float = 0.0
    _stored: bytes | None = None
    """The file as this process last read or wrote it."""

    @classmethod
    def load(cls, storage: Storage, path: str) -> Cursor:
        """An empty cursor where there is none, or an unreadable or newer one."""
        cursor = cls(path)
        cursor.refresh(storage)
        return cursor

    def refresh(self, storage: Storage) -> bool:
        """Read the file again where another process has changed it. Returns whether it was changed."""
        try:
            stored: bytes | None = storage.read(self.path)
        except FileNotFoundError:
            stored = None
        if stored == self._stored:
            return False
        self._stored = stored
        self.experiment_id, self.runs = _parse(stored) if stored is not None else ("", {})
        return True

    def save(self, storage: Storage, tracking_uri: str, *, at_most_every_s: float = 0.0) -> None:
        """Written after the store's replies. Saving late is safe: what is sent twice is held once."""
        if time.monotonic() - self._saved_at < at_most_every_s:
            return
        data: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "tracking_uri": hide_credentials(without_credentials(tracking_uri)),
            "experiment_id": self.experiment_id,
            "runs": {key: asdict(entry) for key, entry in self.runs.items()},
        }
        self._stored = (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()
        storage.write(self.path, self._stored)
        self._saved_at = time.monotonic()

    def is_current(self, plan: RunPlan) -> bool:
        """Whether the store holds all of a planned run."""
        entry = self.runs.get(plan.key)
        return (
            entry is not None
            and entry.digest == plan.digest
            and entry.epoch >= plan.epoch
            and not entry.history_unknown
            and not entry.removed
        )

    def removed(self, plans: Iterable[RunPlan]) -> list[Entry]:
        """Runs of cells and arms that the study no longer has and that are not marked so yet."""
        planned = {plan.key for plan in plans}
        return [entry for key, entry in self.runs.items() if key not in planned and not entry.removed]

    def behind(self, plans: list[RunPlan], tracking_uri: str) -> bool:
        """Whether the store lacks anything. Takes no import of mlflow and asks no server."""
        if not all(self.is_current(plan) for plan in plans) or self.removed(plans):
            return True
        return not holds_runs(tracking_uri, [self.runs[plan.key].run_id for plan in plans])


def _parse(stored: bytes) -> tuple[str, dict[str, Entry]]:
    """Experiment and runs; nothing where the file cannot be read or is of another version."""
    try:
        data = json.loads(stored)
        if data["schema_version"] != SCHEMA_VERSION:
            return "", {}
        return str(data["experiment_id"]), {key: Entry(**entry) for key, entry in data["runs"].items()}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return "", {}


def study_cursor(storage: Storage, study: str, tracking_uri: str) -> Cursor:
    """The cursor of a study in a tracking store."""
    return Cursor.load(storage, f"studies/{study}/mlflow/{uri_hash(tracking_uri)}.json")


def run_cursor(storage: Storage, cell_id: str, experiment: str, tracking_uri: str) -> Cursor:
    """The cursor of a single run in an experiment of a tracking store."""
    return Cursor.load(storage, f"cells/{cell_id}/mlflow/{uri_hash(tracking_uri, experiment)}.json")
