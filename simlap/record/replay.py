"""`verify.json` of a study: what came of training one of its runs anew (`simlap verify`), the newest time and all before."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from simlap.storage import Storage

SCHEMA_VERSION = 1
FILE = "verify.json"


@dataclass(frozen=True)
class Difference:
    """A value that did not come out again."""

    epoch: int
    name: str
    recorded: float | None
    """None where the record has no row of this epoch."""
    replayed: float | None
    """None where the replay has no such value."""


@dataclass(frozen=True)
class ReplayView:
    """One replay, compared with the record."""

    time_ms: int
    cell_id: str
    line: str
    """The run's arm, stage or search."""
    seed: int
    epochs: int
    """So many were trained anew."""
    values: int
    """So many were compared."""
    verdict: Literal["equal", "different"]
    exact: bool
    """Whether values had to be equal bit for bit; else within the tolerance."""
    tolerance: str
    """In words."""
    unlike: list[str] = field(default_factory=list)
    """What differs from the circumstances of the record, and why values need not be equal bit for bit."""
    different: int = 0
    """So many values differ."""
    differences: list[Difference] = field(default_factory=list)
    """The first of them."""
    recorded_codes: list[str] = field(default_factory=list)
    """Hashes of the code that the record is of."""
    code: str = ""
    """Hash of the code of the replay."""
    versions: dict[str, str | None] = field(default_factory=dict)
    """Of the packages of the replay."""
    draw: int | None = None
    """Seed of the random choice; None where the run was named."""
    skipped: list[str] = field(default_factory=list)
    """Runs that the choice fell on before, and why they could not be replayed."""

    @property
    def same_code(self) -> bool:
        """Whether the record is of the code of the replay, as far as it says."""
        return set(self.recorded_codes) == {self.code}


def read_replay(study: Storage) -> ReplayView | None:
    """The newest replay of a study; None where there was none."""
    try:
        latest = study.read_json(FILE)["latest"]
    except FileNotFoundError:
        return None
    return ReplayView(**{**latest, "differences": [Difference(**one) for one in latest["differences"]]})


def save_replay(study: Storage, replay: ReplayView) -> None:
    """Add a replay to `verify.json`, as its newest."""
    try:
        history: list[dict[str, Any]] = study.read_json(FILE)["history"]
    except FileNotFoundError:
        history = []
    latest = asdict(replay)
    study.write_json(FILE, {"schema_version": SCHEMA_VERSION, "latest": latest, "history": [*history, latest]})
