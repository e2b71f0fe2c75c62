"""What a worker is asked to do. Without torch: who asks has no use for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from simlap.config import Experiment, validate

STOP_REQUEST = "stop"
"""An object of this name in the run directory asks the workers to save and stop. It says why."""
GROWS = "to go on with more workers"
"""Why a run was asked to stop that has fewer workers than it asks for, once there is room for more."""


@dataclass(frozen=True)
class CellTask:
    """What a worker is told: plain values, so that it travels."""

    cell_id: str
    experiment: dict[str, Any]
    storage: str
    provenance: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    """What its backbone starts from: the cell id of the stage before, or `weights:` and their fingerprint."""
    until: int | None = None
    """An epoch before the last at whose end it pauses: saved, interrupted, not evaluated."""

    def parsed(self) -> Experiment:
        return validate(Experiment, self.experiment, file=f"cell {self.cell_id}")
