"""Levels drawn from ranges: where they lie, what they are called, and that they stay the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from simlap.study.sampling import Sample, draw


def sample(low: float, high: float, n: int, **more: Any) -> Sample:
    return Sample(low=low, high=high, n=n, **more)


def test_grids() -> None:
    assert draw({"lr": sample(1e-4, 1, 5, scale="log")}) == {"lr": [0.0001, 0.001, 0.01, 0.1, 1.0]}
    assert draw({"t": sample(0, 1, 4)}) == {"t": [0.0, 0.333, 0.667, 1.0]}
    assert draw({"dim": sample(16, 1024, 4, scale="log", type="int")}) == {"dim": [16, 64, 256, 1024]}
    assert draw({"t": sample(0.12341, 0.12342, 3)}) == {"t": [0.12341, 0.123415, 0.12342]}, "apart, and in the range"


def test_draws_are_golden() -> None:
    """Ids of cells hang on them. They change with NumPy's or SciPy's generators only, and then knowingly."""
    ranges: dict[str, dict[str, Any]] = {
        "lr": {"low": 1e-4, "high": 1.0, "n": 5, "scale": "log"},
        "dim": {"low": 1, "high": 8, "n": 5, "type": "int"},
    }
    assert draw({f: Sample(how="random", **keys) for f, keys in ranges.items()}) == {
        "dim": [7, 8, 2, 5, 5], "lr": [0.000187, 0.00142, 0.00018, 0.000194, 0.000934],
    }  # fmt: skip
    assert draw({f: Sample(how="latin_hypercube", **keys) for f, keys in ranges.items()}) == {
        "dim": [2, 6, 8, 2, 5], "lr": [0.014, 0.126, 0.303, 0.000881, 0.000181],
    }  # fmt: skip


def test_a_random_factor_is_moved_by_no_other() -> None:
    one = sample(0, 1, 4, how="random")
    assert draw({"a": one})["a"] == draw({"b": one, "a": one})["a"] != draw({"b": one, "a": one})["b"]
    assert draw({"a": one}) != draw({"a": sample(0, 1, 4, how="random", seed=1)})


@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 9), st.booleans())
def test_latin_hypercube_has_one_value_in_every_stratum(n: int, d: int, seed: int, log: bool) -> None:
    low, high = (1e-3, 1e2) if log else (-1.0, 3.0)
    each = sample(low, high, n, how="latin_hypercube", seed=seed, scale="log" if log else "linear")
    columns = draw({f"x{i}": each for i in range(d)})
    assert columns == draw({f"x{i}": each for i in reversed(range(d))}), "whatever the order"
    for values in columns.values():
        assert all(low <= value <= high for value in values)
        unit = [math.log(v / low) / math.log(high / low) if log else (v - low) / (high - low) for v in values]
        ranks = sorted(u * n for u in unit)
        # rounding to three digits moves a value by at most half a percent
        assert all(i - 0.05 * n <= rank <= i + 1 + 0.05 * n for i, rank in enumerate(ranks))


@given(st.sampled_from(["random", "latin_hypercube"]), st.integers(-5, 5), st.integers(1, 9), st.integers(1, 40))
def test_whole_numbers_stay_whole_and_in_range(how: Any, low: int, width: int, n: int) -> None:
    values = draw({"x": sample(low, low + width, n, how=how, type="int")})["x"]
    assert all(isinstance(value, int) and low <= value <= low + width for value in values)
    if how == "latin_hypercube" and n == 4 * (width + 1):
        assert {values.count(value) for value in values} == {4}, "the ends are as likely as the middle"


def test_levels_of_a_range() -> None:
    whole = sample(1, 8, 2, type="int")
    assert [whole.level(x) for x in (1, 8.0, 9, 1.5, True, "2", None)] == [1, 8, None, None, None, None, None]
    assert isinstance(sample(0, 1, 2).level(1), float), "so that 1 and 1.0 have one name"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"low": 1, "high": 1, "n": 2}, "must be less than high"),
        ({"low": 0, "high": 1, "n": 2, "scale": "log"}, "must be greater than 0 with scale: log"),
        ({"low": 0, "high": 1.5, "n": 2, "type": "int"}, "must be a whole number"),
        ({"low": 0, "high": 1, "n": 1}, "at least 2 for a grid"),
        ({"low": 0, "high": 2, "n": 4, "type": "int"}, "more than there are different levels between 0"),
    ],
)
def test_wrong_ranges(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Sample(**keys)
