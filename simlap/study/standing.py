"""A race as plain data: what goes in, what was decided, what comes next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["better", "worse", "equivalent", "futile", "undecided"]
Names = tuple[str, str]
"""Two arms that are compared: the first minus the second."""


@dataclass(frozen=True)
class Cell:
    """What is known of an arm with a seed."""

    reached: int = 0
    """Epochs finished."""
    values: Mapping[int, float] = field(default_factory=dict)
    """The decision metric by epoch, where it was measured."""
    failed: str | None = None
    """Why it will not go on."""


@dataclass(frozen=True)
class Entrants:
    """Who races, how far."""

    epochs: Mapping[str, int]
    """Epochs of a full run, by arm; all arms, the baseline included."""
    baseline: str
    seeds: tuple[int, ...]
    """Planned seeds, in the order in which they are added."""
    mode: Literal["max", "min"] = "max"
    protected: frozenset[str] = frozenset()
    """Arms that get all seeds to the last epoch, whatever is decided."""


@dataclass(frozen=True)
class Decision:
    """What a look decided about an arm, with its numbers."""

    arm: str
    verdict: Verdict
    reason: str
    against: str | None = None
    """The arm it was compared with."""
    difference: float | None = None
    """Mean of `arm` minus `against`, in the metric's units."""
    low: float | None = None
    high: float | None = None
    """Repeated confidence interval: at the nominal level of this look, over all looks and comparisons."""
    p_value: float | None = None
    """Of this look's paired t test alone, two-sided."""
    level: float | None = None
    """The nominal level it was held against."""
    p_adjusted: float | None = None
    """Over looks and comparisons, once the arm leaves: at most alpha where there is a difference. Never below 1e-5."""
    leaves: bool = True
    """Whether the arm leaves the race with it: no more seeds are added."""
    why: str = ""
    """What of the reason is no number of this table: why it is given up, or goes on."""


@dataclass(frozen=True)
class Look:
    """One complete look."""

    seeds: int
    """How many planned seeds it takes."""
    epochs: int | None
    """The rung, or None at the last epoch."""
    spent: float
    """Alpha spent so far, of that of the study."""
    comparisons: int
    """Not rejected before it: alpha is divided by it."""
    decisions: tuple[Decision, ...]
    """Of every arm that was still racing, by name."""


@dataclass(frozen=True)
class Need:
    """A cell that has to run up to an epoch."""

    arm: str
    seed: int
    epochs: int


@dataclass(frozen=True)
class Standing:
    """All looks so far, and what comes next."""

    looks: list[Look]
    verdicts: dict[str, Decision]
    """Of arms that have left the race, by arm."""
    needed: list[Need]
    """Cells that the next look waits for; empty at the end."""
    asked: dict[tuple[str, int], int]
    """Epochs that were needed so far, by arm and seed."""
