"""One MLflow run as it should be, as plain data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

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


class OfConfig(NamedTuple):
    """What a run has of its configuration."""

    tags: dict[str, str] = {}
    params: dict[str, str] = {}
    dataset: DatasetPlan | None = None


@dataclass(frozen=True)
class RunPlan:
    """One MLflow run as it should be."""

    key: str
    """`study`, `stage:<id>`, `trial:<id>`, `arm:<name>`, `cell:<id>` or `run:<id>`: what the run is found by."""
    name: str
    status: Status
    own_tags: dict[str, str]
    own_params: dict[str, str]
    parent: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    rows: list[EpochRow] = field(default_factory=list)
    """Durable epochs only: a later one may still be replayed."""
    single: dict[str, float] = field(default_factory=dict)
    """Metrics with one value, at step 0: MLflow draws them as bars. A new value replaces the old one."""
    closing: list[Point] = field(default_factory=list)
    """Measured once, at the last epoch."""
    read_config: Callable[[], OfConfig] = OfConfig
    """Asked for the rest of tags and params, and the dataset, where the run has to be written."""
    config_stamp: str = ""
    """Stands for what it says: whether the store has all of a thousand runs is judged without a thousand configurations."""
    artifacts: list[Artifact] = field(default_factory=list)
    model_of: str | None = None
    """Cell whose final checkpoint is registered as a model."""
    experiment_tags: dict[str, str] = field(default_factory=dict)
    """Tags of the whole experiment."""

    @cached_property
    def tags(self) -> dict[str, str]:
        return self._of_config.tags | self.own_tags

    @cached_property
    def params(self) -> dict[str, str]:
        return self._of_config.params | self.own_params

    @property
    def dataset(self) -> DatasetPlan | None:
        return self._of_config.dataset

    @cached_property
    def _of_config(self) -> OfConfig:
        return self.read_config()

    @property
    def epoch(self) -> int:
        return self.rows[-1].epoch if self.rows else 0

    @property
    def digest(self) -> str:
        """Changes whenever anything but the epochs changes."""
        content = (
            self.name, self.status, self.own_tags, self.own_params, self.parent, self.end_ms, self.single, self.closing,
            self.config_stamp, [(a.path, a.stamp) for a in self.artifacts], self.model_of, self.experiment_tags,
        )  # fmt: skip
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def points(self, after_epoch: int = 0) -> Iterator[Point]:
        """Metrics of the epochs after one, with their original times: sent twice, MLflow still holds them once."""
        for row in self.rows:
            if row.epoch > after_epoch:
                for key, value in finite(row.metrics | row.system).items():
                    yield Point(key, value, row.time_ms, row.epoch)
