"""Whether what a study file declares beforehand can be answered by its arms: `claims`, `compare`, `margin`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simlap.config import claims
from simlap.errors import ConfigError
from simlap.study.arms import Arm
from simlap.study.scheduling import Race

if TYPE_CHECKING:
    from simlap.study.spec import StudySpec


def check_declared(spec: StudySpec, arms: Sequence[Arm], file: str) -> None:
    """Raises ConfigError. `file`: named in it."""
    if isinstance(spec.scheduler, Race):
        for key, given in (("compare", spec.compare != "common"), ("margin", spec.margin is not None)):
            if given:
                remedy = "it compares at its looks" if key == "compare" else "write scheduler.margin"
                raise ConfigError(f"a race has its own: {remedy}", file=file, key=key, value=getattr(spec, key))
    epoch, shortest = getattr(spec.compare, "epoch", None), min(arms, key=lambda arm: arm.experiment.train.epochs)
    if epoch is not None and epoch > shortest.experiment.train.epochs:
        raise ConfigError(
            f"is beyond the last epoch of arm {shortest.name}, {shortest.experiment.train.epochs}",
            file=file, key="compare.epoch", value=epoch,
        )  # fmt: skip
    if not spec.claims:
        return
    baseline = next(arm.name for arm in arms if arm.baseline)
    factors = {
        name: list(dict.fromkeys(arm.levels[name] for arm in arms if arm.levels[name] in factor.named()))
        for name, factor in spec.factors.items()
    }
    claims.check(spec.claims, claims.Grid({arm.name: arm.levels for arm in arms}, factors, baseline), file)
    if len(spec.seed_list()) < 2:
        raise ConfigError("no claim can be tested with one seed", file=file, key="seeds", value=spec.seeds)
