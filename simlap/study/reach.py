"""Whether the planned seeds can show what the user wants to see: an error where they never can, their power elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from simlap.config.schema import Positive, Strict
from simlap.errors import ConfigError
from simlap.study.scheduling import Race

if TYPE_CHECKING:
    from simlap.study.plan import Plan
    from simlap.study.spec import Study, StudySpec

ALPHA = 0.05
"""Family-wise level of the report's tests."""
LOW = 0.5
"""Less power than this is worth a warning: finding nothing would be the likelier outcome."""


class Detect(Strict):
    """The difference that the study is to find. `detect: 0.01` is short for `detect: {difference: 0.01}`."""

    difference: Positive
    """To the baseline, in the units of `metric.report`."""
    power: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.8
    """Probability with which the planned seeds should find it."""
    test: Literal["t", "sign_flip", "wilcoxon"] = "t"
    """How: the report's paired t tests, or an exact test over the signs of the differences that is made with its numbers
    elsewhere. The smallest p-value of those is 2^(1 - seeds), whatever the difference."""


@dataclass(frozen=True)
class Detection:
    """What the planned seeds make of the difference that is asked for."""

    asked: Detect
    seeds: int
    power: float | None
    """None where nothing is known of the spread yet."""
    needed: int | None = None
    """Seeds that reach the power asked for; None: more than 10,000, or nothing is known of the spread yet."""
    basis: str = ""
    """Where the spread comes from, in words."""

    @property
    def low(self) -> bool:
        return self.power is not None and self.power < LOW

    def words(self, metric: str) -> str:
        what = f"a difference of {self.asked.difference:g} in {metric}"
        if self.power is None:
            return f"power for {what}: unknown until two seeds of the baseline are done"
        told = f"{self.seeds} seeds find {what} with {100 * self.power:.0f} % power, {self.basis}"
        if self.power >= self.asked.power:
            return told
        count = "more than 10,000 seeds" if self.needed is None else f"{self.needed} seeds"
        return f"{told}; {100 * self.asked.power:g} % would take {count}"


def asked_of(spec: StudySpec) -> Detect | None:
    """The study's `detect`, written out."""
    return spec.detect if spec.detect is None or isinstance(spec.detect, Detect) else Detect(difference=spec.detect)


def check_reach(study: Study) -> None:
    """Whether the planned seeds could ever show what `detect` asks for. Raises ConfigError."""
    spec, asked = study.spec, asked_of(study.spec)
    if asked is None:
        return
    file = str(study.path)
    margin = spec.scheduler.margin if isinstance(spec.scheduler, Race) else None
    if margin is not None and asked.difference <= margin:
        raise ConfigError(
            f"must be more than scheduler.margin ({margin:g}), below which differences do not matter",
            file=file, key="detect", value=asked.difference,
        )  # fmt: skip
    from simlap.study.power import out_of_reach  # scipy's distributions take a while to import

    seeds = len(spec.seed_list())
    if reason := out_of_reach(seeds, _alpha(study), asked.test, comparisons_of(study)):
        raise ConfigError(f"{reason}, or leave out `detect`", file=file, key="seeds", value=seeds)


def detection(plan: Plan) -> Detection | None:
    """What the planned seeds make of the study's `detect`, from the spread so far; None where it has none.

    The power is that of the paired t test, in Holm's worst case. An exact test has a little less.
    """
    asked = asked_of(plan.study.spec)
    if asked is None:
        return None
    from simlap.study.estimate import detectable
    from simlap.study.power import out_of_reach, power_of, seeds_needed

    seeds = len(plan.study.spec.seed_list())
    known = detectable(plan)
    if known is None:
        return Detection(asked, seeds, None)
    alpha, comparisons = _alpha(plan.study), comparisons_of(plan.study)
    power = power_of(asked.difference, seeds, known.std, alpha, comparisons)
    needed = seeds_needed(asked.difference, known.std, alpha, asked.power, comparisons)
    while needed is not None and out_of_reach(needed, alpha, asked.test, comparisons):
        needed += 1
    return Detection(asked, seeds, power, needed, known.basis)


def out_of_margin(plan: Plan) -> str | None:
    """Why a race's arms could hardly be called equivalent at the spread so far, in words; None where they can, or nobody asks.

    Even an arm whose difference is exactly 0 in all planned seeds' mean, alone in its family, has an interval of this width.
    """
    rules = plan.study.spec.scheduler
    if not isinstance(rules, Race) or rules.margin is None:
        return None
    from simlap.study.estimate import detectable

    known, seeds = detectable(plan), len(plan.study.spec.seed_list())
    if known is None or seeds < 2:
        return None
    from scipy import stats

    half = float(stats.t.isf(rules.alpha / 2, seeds - 1)) * known.std / seeds**0.5
    if half < rules.margin:
        return None
    return (
        f"no arm can be called equivalent with {seeds} seeds: at the spread so far ({known.basis}) the interval is at least "
        f"± {half:.2g}, and scheduler.margin is {rules.margin:g}"
    )


def warnings(plan: Plan) -> list[str]:
    """What a user should know of the planned seeds before they are run."""
    found = detection(plan)
    told = [found.words(plan.study.spec.metric.report)] if found and found.low else []
    return [*told, *filter(None, [out_of_margin(plan)])]


def comparisons_of(study: Study) -> int:
    """How many comparisons share the level: each arm with the baseline, or every two arms in a race against the best."""
    arms = len(study.arms)
    rules = study.spec.scheduler
    every = isinstance(rules, Race) and rules.against == "best"
    return max(1, arms * (arms - 1) // 2 if every else arms - 1)


def _alpha(study: Study) -> float:
    rules = study.spec.scheduler
    return rules.alpha if isinstance(rules, Race) else ALPHA
