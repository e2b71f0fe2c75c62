"""Steps whose loss leaps above those before it: counted, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WINDOW = 32
"""Each loss is held against so many finite ones before it: over a whole epoch the loss falls too far to tell."""
_DEVIATIONS = 10.0
_SIGMA = 1.4826
"""Standard deviations of a normal distribution in its median absolute deviation."""
_LEAST = 0.01
"""Of the median: a deviation is taken to be at least so large."""


def count_spikes(losses: Sequence[float], new: int) -> int:
    """How many of the last `new` losses are above the median of the `WINDOW` before them by more than 10 deviations.

    A deviation is the median absolute one of those `WINDOW`, scaled to a normal distribution's standard deviation, and 1 % of
    the median at least. What is not finite was no step, and is passed over; so are losses with fewer before them.
    """
    numbers = np.array(losses, dtype=np.float64)
    finite = np.isfinite(numbers)
    of_steps = numbers[finite]
    judged = min(int(finite[max(0, len(numbers) - new) :].sum()), len(of_steps) - WINDOW)
    if judged <= 0:
        return 0
    before = np.lib.stride_tricks.sliding_window_view(of_steps[-judged - WINDOW : -1], WINDOW)  # [judged, WINDOW]
    median = np.median(before, axis=1)
    deviation = _SIGMA * np.median(np.abs(before - median[:, None]), axis=1)
    limit = median + _DEVIATIONS * np.maximum(deviation, _LEAST * np.abs(median))
    return int((of_steps[-judged:] > limit).sum())
