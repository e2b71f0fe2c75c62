"""ASHA's settings in `ablations/`, on the recorded learning curves of real studies (docs/schedulers.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from simlap.study.curves import read_curves
from simlap.study.scheduling import Asha
from simlap.study.simulate import Replay, Settings, simulate
from simlap.study.spec import load_study

ROOT = Path(__file__).resolve().parents[3]
CURVES = sorted((ROOT / "docs/results/curves").glob("*.parquet"))
NEARLY_EQUAL = "digits_gates"
"""Its arms differ by less than the noise: the whole grid does not find the best one either."""


def settings_in_use() -> list[Asha]:
    """Of the studies in which every arm but the baseline may be stopped."""
    specs = [load_study(file).spec for file in sorted((ROOT / "ablations").glob("*.yaml"))]
    found = [spec.scheduler for spec in specs if isinstance(spec.scheduler, Asha) and not spec.protect]
    return [asha for i, asha in enumerate(found) if asha not in found[:i]]


@pytest.mark.parametrize("file", CURVES, ids=lambda file: file.stem)
def test_curves_are_whole(file: Path) -> None:
    curves = read_curves(file)
    study = load_study(ROOT / "ablations" / f"curves_{file.stem}.yaml")
    assert {arm.name for arm in study.arms} == set(curves.arms)
    assert list(curves.seeds) == study.spec.seed_list()
    assert curves.epochs == tuple(range(1, study.base.train.epochs + 1))


@pytest.mark.parametrize("file", [file for file in CURVES if file.stem != NEARLY_EQUAL], ids=lambda file: file.stem)
@pytest.mark.parametrize("asha", settings_in_use(), ids=str)
def test_asha_finds_the_winner_at_two_fifths_of_the_cost(file: Path, asha: Asha) -> None:
    result = simulate(Replay(read_curves(file)), asha, Settings(replicates=400, slots=2, tolerance=0.005))
    assert result.found >= 0.95
    assert result.epochs <= 0.40
