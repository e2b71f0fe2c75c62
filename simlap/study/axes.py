"""Axes of a design: factors whose levels are varied together, and the points that they take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simlap.errors import ConfigError
from simlap.study.levels import Names
from simlap.study.sampling import Number, Sample, draw

if TYPE_CHECKING:
    from simlap.study.spec import StudySpec

JOINT = ("random", "latin_hypercube")


@dataclass(frozen=True)
class Axis:
    """One factor, or several that go together."""

    factors: tuple[str, ...]
    points: list[tuple[str, ...]]
    """Levels of the factors, distinct points."""

    @property
    def label(self) -> str:
        return "+".join(self.factors)

    def point(self, levels: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(levels[factor] for factor in self.factors)

    def at(self, point: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(self.factors, point, strict=True))


def groups(spec: StudySpec, file: str) -> list[tuple[str, ...]]:
    """Factors that go together, in the order of the file: those zipped, those sampled together, all others alone. Raises
    ConfigError."""
    place: dict[str, tuple[str, ...]] = {}
    for how in JOINT:
        if together := [f for f, factor in spec.factors.items() if factor.sample and factor.sample.how == how]:
            place |= dict.fromkeys(together, tuple(together))
    for i, zipped in enumerate(spec.zip):
        key = f"zip.{i}"
        if len(zipped) < 2 or len(set(zipped)) < len(zipped):
            raise ConfigError("names two or more different factors", file=file, key=key, value=zipped)
        for factor in zipped:
            if factor not in spec.factors:
                raise ConfigError("no such factor", file=file, key=key, value=factor, choices=list(spec.factors))
            if factor in place:
                sample = spec.factors[factor].sample
                why = f"how: {sample.how}" if sample and sample.how in JOINT else "zip"
                raise ConfigError(f"goes together with others already ({why})", file=file, key=key, value=factor)
        group = tuple(factor for factor in spec.factors if factor in zipped)
        place |= dict.fromkeys(group, group)
    return list(dict.fromkeys(place.get(factor, (factor,)) for factor in spec.factors))


def make_axes(spec: StudySpec, names: Names, file: str) -> list[Axis]:
    """The axes of a study whose levels are drawn. Raises ConfigError for levels that do not pair up."""
    axes = []
    for group in groups(spec, file):
        positions = {factor: names.positions[factor] for factor in group}
        i = next((i for i, zipped in enumerate(spec.zip) if set(zipped) == set(group)), None)
        if len({len(levels) for levels in positions.values()}) > 1:
            counts = ", ".join(f"{factor} has {len(levels)}" for factor, levels in positions.items())
            raise ConfigError(f"zipped factors have equally many levels; {counts}", file=file, key=f"zip.{i}")
        points = list(zip(*positions.values(), strict=True))
        if twice := next((point for point, times in Counter(points).items() if times > 1), None):
            what = ", ".join(f"{factor}: {level}" for factor, level in zip(group, twice, strict=True))
            sampled = spec.factors[group[0]].sample if i is None else None
            key = f"factors.{group[0]}.sample.n" if sampled else f"zip.{i}"
            raise ConfigError(
                f"the same levels come twice ({what}){'; take fewer or another seed' if sampled else ''}",
                file=file, key=key, value=sampled.n if sampled else None,
            )  # fmt: skip
        axes.append(Axis(group, points))
    return axes


def with_drawn_levels(spec: StudySpec, file: str) -> StudySpec:
    """The study with the levels of sampled factors filled in. The baseline's are among them. Raises ConfigError."""
    levels: dict[str, list[Number]] = {}
    for group in groups(spec, file):
        samples = {f: sample for f in group if (sample := spec.factors[f].sample) is not None}
        baseline = {f: _baseline_level(spec, f, sample, file) for f, sample in samples.items() if f in spec.baseline}
        if group[0] in samples and samples[group[0]].how in JOINT:
            _check_together(samples, file)
            drawn = draw(samples)
            point = tuple(baseline.get(f, drawn[f][0]) for f in samples)
            if baseline and point not in zip(*(drawn[f] for f in samples), strict=True):
                drawn = {f: [value, *drawn[f]] for f, value in zip(samples, point, strict=True)}
            levels |= drawn
        else:
            for f, sample in samples.items():
                levels[f] = sorted({*draw({f: sample})[f], *([baseline[f]] if f in baseline else [])})
    factors = {
        f: factor.model_copy(update={"levels": levels[f]}) if f in levels else factor
        for f, factor in spec.factors.items()
    }
    return spec.model_copy(update={"factors": factors})


def _baseline_level(spec: StudySpec, factor: str, sample: Sample, file: str) -> Number:
    level = sample.level(given := spec.baseline[factor])
    if level is None:
        kind = "a whole number" if sample.type == "int" else "a number"
        raise ConfigError(
            f"must be {kind} from {sample.low:g} to {sample.high:g}, the range of factors.{factor}.sample",
            file=file, key=f"baseline.{factor}", value="null" if given is None else given,
        )  # fmt: skip
    return level


def _check_together(samples: Mapping[str, Sample], file: str) -> None:
    (first, one), *others = samples.items()
    for key in ("n", "seed") if one.how == "latin_hypercube" else ("n",):
        for other, sample in others:
            if getattr(sample, key) != getattr(one, key):
                raise ConfigError(
                    f"must be that of factors.{first}.sample, which is drawn together with it ({getattr(one, key)})",
                    file=file, key=f"factors.{other}.sample.{key}", value=getattr(sample, key),
                )  # fmt: skip
