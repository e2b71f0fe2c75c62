"""Losses that leap: the definition, and what is none."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simlap.train.spikes import WINDOW, count_spikes

losses = st.lists(
    st.one_of(st.floats(-4, 4), st.sampled_from([1.0, 1.05, 1.3, 50.0, math.nan, math.inf])), max_size=3 * WINDOW
)


def naive(values: list[float], new: int) -> int:
    count = 0
    for place in range(max(0, len(values) - new), len(values)):
        before = [value for value in values[:place] if math.isfinite(value)][-WINDOW:]
        if not math.isfinite(values[place]) or len(before) < WINDOW:
            continue
        median = statistics.median(before)
        deviation = 1.4826 * statistics.median(abs(value - median) for value in before)
        count += values[place] > median + 10 * max(deviation, 0.01 * abs(median))
    return count


@given(losses, st.integers(0, 4 * WINDOW))
def test_the_definition(values: list[float], new: int) -> None:
    assert count_spikes(values, new) == naive(values, new)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.2])
def test_a_run_that_learns_has_none(noise: float) -> None:
    steps = np.arange(500)
    curve = 6 * np.exp(-steps / 50) + 1 + noise * np.random.default_rng(0).normal(size=500)
    assert count_spikes(curve.tolist(), 500) == 0
    curve[[100, 101, 400]] += 5
    assert count_spikes(curve.tolist(), 500) == 3
    assert count_spikes(curve.tolist(), 200) == 1
