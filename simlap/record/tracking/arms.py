"""The numbers of an arm as MLflow shows them."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from simlap.record.tracking.names import finite
from simlap.record.view import ArmView, CellView, StudyView

COMPARED = ("difference", "difference_ci_low", "difference_ci_high", "p_value", "p_adjusted", "epoch")


def common_epoch(cells: list[CellView]) -> int | None:
    """The highest epoch that all cells reached: even arms that were stopped early have a value there. None where it is none."""
    return min((cell.epoch for cell in cells), default=0) or None


def arm_numbers(study: StudyView, arm: ArmView, summary: Mapping[str, Any], common: int | None) -> dict[str, float]:
    """What the report's summary says of an arm, by metric, to five digits (all of them are in the artefact report/summary.json).

    A difference that was not measured at the end is told by other names, `early_*`: it is of another metric, at another epoch.
    `common_mean` is the metric of decisions at the epoch `common` that all arms have: MLflow's parallel coordinates draw only
    what every run has, and of that the first.
    """
    numbers: dict[str, Any] = {}
    if common is not None:
        values = [value for cell in arm.cells if (value := cell.metric_at(study.metric, common)) is not None]
        if len(values) == len(arm.cells):
            numbers["common_mean"] = fmean(values)
    numbers |= summary.get("arms", {}).get(arm.name, {})
    compared = summary.get("comparisons", {}).get(arm.name, {})
    if not compared.get("final", True):
        numbers |= {f"early_{key}": compared[key] for key in COMPARED if key in compared}
    # p-values may be tiny; a difference of 1e-17 is none
    return finite(
        {
            key: float(f"{value if key.endswith(('p_value', 'p_adjusted')) else round(value, 12):.5g}")
            for key, value in numbers.items()
            if isinstance(value, int | float)
        }
    )
