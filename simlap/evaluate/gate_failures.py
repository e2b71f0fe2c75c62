"""How gates fail, from the metrics of the `gates` protocol. Without torch: reports are made where nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from simlap.evaluate.openness import gate_warning

CLOSED, OPEN, RANGE = 0.05, 0.95, 0.05
"""A dimension never opens if no pair's gate is above `CLOSED`, is always open if none is below `OPEN`, and is dead if its gates
over all pairs are within `RANGE` of each other."""
DEAD_SHARE = 0.5
SAME_STD = 0.01
FEW_DIMENSIONS = 2.0
ONE_DIRECTION = 1.5
Kind = Literal["closed", "open", "identical", "dead", "few dimensions", "one direction"]
_FOLLOWS: dict[Kind, set[Kind]] = {
    "closed": {"identical", "dead", "few dimensions", "one direction"},
    "open": {"identical", "dead", "few dimensions", "one direction"},
    "identical": {"dead", "one direction"},
}


@dataclass(frozen=True)
class Signature:
    """A sign of failure, and whether the metrics show it."""

    kind: Kind
    failed: bool
    short: str
    """What would be so, for a list of runs: `all pairs have the same gate`."""
    number: str
    """What it is judged by: `standard deviation over pairs 0.004; flagged below 0.01`."""
    consequence: str


def gate_signatures(metrics: Mapping[str, float]) -> list[Signature]:
    """Every signature that can be judged, failed or not.

    Args:
        metrics: names without `gates/`; what is absent (two classes, records of older versions) is not judged.
    """
    mean = metrics["activation"]
    ends = gate_warning(mean) is not None
    found = [
        Signature("closed", ends and mean < 0.5, "all gates are near 0", f"mean gate {mean:.4f}; flagged below 0.01",
                  "the subspaces are empty and the loss says little"),
        Signature("open", ends and mean > 0.5, "all gates are near 1", f"mean gate {mean:.4f}; flagged above 0.99",
                  "the filter does nothing, as with method.gate: {kind: open}"),
    ]  # fmt: skip
    if (std := metrics.get("pair_std")) is not None:
        number = f"standard deviation over pairs {std:.4f}, mean over dimensions; flagged below {SAME_STD:g}"
        text = "the filter is one fixed mask, whatever the pair"
        found.append(Signature("identical", std < SAME_STD, "all pairs have the same gate", number, text))
    if (dead := metrics.get("dead_dimensions")) is not None:
        number = (
            f"{dead:.0%} of the dimensions have gates within {RANGE:g} of each other over all pairs "
            f"({metrics['closed_dimensions']:.0%} never open, {metrics['open_dimensions']:.0%} open for every pair); "
            f"flagged from {DEAD_SHARE:.0%} on"
        )
        text = "these dimensions do not tell pairs apart"
        found.append(Signature("dead", dead >= DEAD_SHARE, "half of the dimensions or more are dead", number, text))
    if (few := metrics.get("dimensions_per_pair")) is not None:
        number = f"a pair opens {few:.1f} dimensions on average; flagged below {FEW_DIMENSIONS:g}"
        text = "in a subspace of one dimension the cosine is a sign, and ranks nothing"
        found.append(Signature("few dimensions", few < FEW_DIMENSIONS, "pairs open one dimension", number, text))
    if (directions := metrics.get("directions")) is not None:
        number = f"effective rank of the gates over pairs {directions:.2f}; flagged below {ONE_DIRECTION:g}"
        text, short = "pairs differ in how much they open, not in what", "the gates vary along one direction"
        found.append(Signature("one direction", directions < ONE_DIRECTION, short, number, text))
    return found


def gate_failures(metrics: Mapping[str, float]) -> list[Signature]:
    """The signatures that the metrics show, without those that follow from others of them."""
    failed = [one for one in gate_signatures(metrics) if one.failed]
    follow = {kind for one in failed for kind in _FOLLOWS.get(one.kind, set())}
    return [one for one in failed if one.kind not in follow]


def failure_text(failure: Signature) -> str:
    """A failure in a sentence, without its full stop: what is so, the number, what follows."""
    return f"{failure.short} ({failure.number}): {failure.consequence}"
