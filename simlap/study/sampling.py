"""Levels drawn from ranges: grids, random draws and Latin hypercubes (McKay, Beckman & Conover 1979).

A draw is a function of the file. `random` is NumPy's PCG64, seeded by `seed` and the factor's name, so that another factor more
or less moves nobody's values; `latin_hypercube` is SciPy's, over all its factors in alphabetical order, seeded by `seed`. The
order of the keys does not matter. Values are rounded to the fewest significant digits, at least three, that keep different draws
apart: names stay short, and ids the same.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simlap.config.schema.base import Count, Strict, wrong

Number = int | float
DIGITS = 3


class Range(Strict):
    """Numbers from `low` to `high`."""

    low: float
    """Least value; it may be taken."""
    high: float
    """Greatest value; it may be taken."""
    scale: Literal["linear", "log"] = "linear"
    """On which values are spread evenly."""
    type: Literal["float", "int"] = "float"
    """Whether values are whole numbers."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.low >= self.high:
            raise wrong("low", self.low, "must be less than high ({high})", high=self.high)
        if self.scale == "log" and self.low <= 0:
            raise wrong("low", self.low, "must be greater than 0 with scale: log")
        if self.type == "int":
            for key in ("low", "high"):
                if not float(getattr(self, key)).is_integer():
                    raise wrong(key, getattr(self, key), "must be a whole number with type: int")
        return self

    def rounded(self, value: float, digits: int) -> Number:
        """A value of the range with so many significant digits, or a whole number."""
        value = round(value) if self.type == "int" else float(f"{value:.{digits}g}")
        value = min(max(value, self.low), self.high)
        return int(value) if self.type == "int" else float(value)


class Sample(Range):
    """A range, and how levels are taken from it."""

    n: Count
    """How many levels. Factors that are sampled together (`how`) have the same n."""
    how: Literal["grid", "random", "latin_hypercube"] = "grid"
    """Evenly spaced from `low` to `high`, for this factor alone; or drawn, together with all other factors of the study that are
    drawn in the same way: these are tried at n points, not at all combinations of their values."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draws."""

    @model_validator(mode="after")
    def _has_levels(self) -> Self:
        if self.how == "grid":
            if self.n < 2:
                raise wrong("n", self.n, "must be at least 2 for a grid, which has low and high")
            if len(set(_values(self, [i / (self.n - 1) for i in range(self.n)]))) < self.n:
                raise wrong(
                    "n", self.n, "is more than there are different levels between {low} and {high}",
                    low=self.low, high=self.high,
                )  # fmt: skip
        return self

    def level(self, value: object) -> Number | None:
        """A number of the range as levels are written, or None for anything else."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return None
        if self.type == "int":
            return int(value) if float(value).is_integer() else None
        return float(value)


def draw(samples: Mapping[str, Sample]) -> dict[str, list[Number]]:
    """Levels by factor, n each. Those drawn together go together position by position.

    Args:
        samples: of factors that share `how`, `n` and (Latin hypercube) `seed`.
    """
    names = sorted(samples)
    first = samples[names[0]]
    match first.how:
        case "grid":
            units = {name: [i / (samples[name].n - 1) for i in range(samples[name].n)] for name in names}
        case "random":
            units = {name: _random(samples[name], name) for name in names}
        case "latin_hypercube":
            units = dict(zip(names, _latin_hypercube(len(names), first.n, first.seed), strict=True))
    return {name: _values(samples[name], units[name]) for name in names}


def _random(sample: Sample, name: str) -> list[float]:
    import numpy as np

    return [float(u) for u in np.random.default_rng([sample.seed, zlib.crc32(name.encode())]).random(sample.n)]


def _latin_hypercube(d: int, n: int, seed: int) -> list[list[float]]:
    """d columns of n numbers in [0, 1), one in each of n equal strata."""
    import numpy as np
    from scipy.stats import qmc  # takes a second to import: only studies that need it wait

    points = qmc.LatinHypercube(d=d, rng=np.random.default_rng(seed)).random(n)
    return [[float(u) for u in column] for column in points.T]


def _values(sample: Sample, units: Sequence[float]) -> list[Number]:
    """From [0, 1] to the range, rounded."""
    low, high = sample.low, sample.high
    if sample.type == "int" and sample.how != "grid":
        low, high = low - 0.5, high + 0.5  # the ends are as likely as what lies between
    if sample.scale == "log":
        exact = [math.exp((1 - u) * math.log(low) + u * math.log(high)) for u in units]
    else:
        exact = [(1 - u) * low + u * high for u in units]
    if sample.type == "int":
        return [int(min(max(round(x), sample.low), sample.high)) for x in exact]
    different = len(set(exact))
    for digits in range(DIGITS, 18):
        rounded = [min(max(float(f"{x:.{digits}g}"), sample.low), sample.high) for x in exact]
        if len(set(rounded)) == different:
            break
    return list(rounded)
