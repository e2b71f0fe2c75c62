"""One MLflow run as it should be, as plain data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from simlap.record.tracking.names import Point, finite
from simlap.record.view import EpochRow

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Artifact:
    """A file to attach to a run. Sent again when `stamp` changes."""

    path: str
    stamp: str
    content: Callable[[], bytes]


@dataclass(frozen=True)
class DatasetPlan:
    """The dataset a run was trained on; `digest` is its fingerprint."""

    name: str
    digest: str
    source_type: str
    source: str


@dataclass(frozen=True)
class RunPlan:
    """One MLflow run as it should be."""

    key: str
    """`study`, `stage:<id>`, `trial:<id>`, `arm:<name>`, `cell:<id>` or `run:<id>`: what the run is found by."""
    name: str
    status: Status
    tags: dict[str, str]
    params: dict[str, str]
    parent: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    rows: list[EpochRow] = field(default_factory=list)
    """Durable epochs only: a later one may still be replayed."""
    single: dict[str, float] = field(default_factory=dict)
    """Metrics with one value, at step 0: MLflow draws them as bars. A new value replaces the old one."""
    closing: list[Point] = field(default_factory=list)
    """Measured once, at the last epoch."""
    dataset: DatasetPlan | None = None
    artifacts: list[Artifact] = field(default_factory=list)
    model_of: str | None = None
    """Cell whose final checkpoint is registered as a model."""
    experiment_tags: dict[str, str] = field(default_factory=dict)
    """Tags of the whole experiment."""

    @property
    def epoch(self) -> int:
        return self.rows[-1].epoch if self.rows else 0

    @property
    def digest(self) -> str:
        """Changes whenever anything but the epochs changes."""
        content = (
            self.name, self.status, self.tags, self.params, self.parent, self.end_ms, self.single, self.closing,
            self.dataset.__dict__ if self.dataset else None, [(a.path, a.stamp) for a in self.artifacts], self.model_of,
            self.experiment_tags,
        )  # fmt: skip
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def points(self, after_epoch: int = 0) -> Iterator[Point]:
        """Metrics of the epochs after one, with their original times: sent twice, MLflow still holds them once."""
        for row in self.rows:
            if row.epoch > after_epoch:
                for key, value in finite(row.metrics).items():
                    yield Point(key, value, row.time_ms, row.epoch)
