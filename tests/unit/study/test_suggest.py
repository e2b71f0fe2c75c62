"""What a search asks for next: a function of the results so far, in their ranges, better than chance."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import simlap.train.check  # noqa: F401 - torch is here: the checks need no process of their own
from simlap.record import cache
from simlap.study import suggest as suggesting
from simlap.study.search import Search, Values
from simlap.study.suggest import DIGITS, Told, suggest

LR = {"path": "optim.lr", "range": {"low": 1e-4, "high": 1e-1, "scale": "log"}}


def follow(settings: Search, objective: Callable[[Values], float | None]) -> list[Told]:
    """A search by itself, to its end."""
    told: list[Told] = []
    while len(told) < settings.trials:
        values = suggest(settings, settings.factors, told, settings.batch, mode="max")
        told += [Told(one, objective(one)) for one in values]
    return told[: settings.trials]


def bowl(values: Values) -> float:
    return -((math.log10(float(values["lr"])) + 2.5) ** 2) - 0.1 * abs(float(values.get("dim", 4)) - 4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_search_finds_what_random_trials_do_not(seed: int) -> None:
    def settings(sampler: str) -> Search:
        dim = {"path": "method.embed_dim", "range": {"low": 1.0, "high": 64.0, "type": "int", "scale": "log"}}
        tree = {"factors": {"lr": LR, "dim": dim}, "trials": 40, "sampler": sampler, "seed": seed}
        return Search.model_validate(tree)

    values = [told.value or 0.0 for told in follow(settings("tpe"), bowl)]
    drawn = [told.value or 0.0 for told in follow(settings("random"), bowl)]
    assert max(values) > median(drawn)
    assert median(values[20:]) > median(drawn), "it goes to where it was good"
    assert max(values) > -0.1


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_results_give_the_same_trials(sampler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Search.model_validate({"factors": {"lr": LR}, "trials": 16, "sampler": sampler})
    first = follow(settings, bowl)
    calls: list[int] = []
    ask = suggesting._ask

    def counted(*args: Any) -> list[Values]:
        calls.append(1)
        return ask(*args)

    monkeypatch.setattr(suggesting, "_ask", counted)
    assert follow(settings, bowl) == first
    assert not calls, "this machine remembers"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache._open.cache_clear()
    assert follow(settings, bowl) == first
    assert len(calls) == 4
    other = Search.model_validate({**settings.model_dump(), "seed": 1})
    assert follow(other, bowl) != first
    assert len({str(told.values) for told in first}) == 16


def test_failed_trials_do_not_count_as_bad_or_good() -> None:
    settings = Search.model_validate({"factors": {"lr": LR}, "trials": 30})
    told = follow(settings, lambda values: None if float(values["lr"]) > 1e-2 else float(values["lr"]))
    assert {trial.value is None for trial in told} == {True, False}
    nan = follow(settings, lambda values: math.nan if float(values["lr"]) > 1e-2 else float(values["lr"]))
    assert [trial.values for trial in nan] == [trial.values for trial in told]


@given(
    low=st.floats(1e-6, 1e3), factor=st.floats(1.001, 1e6), scale=st.sampled_from(["linear", "log"]),
    whole=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_values_lie_in_their_range_and_are_short(low: float, factor: float, scale: str, whole: bool, seed: int) -> None:
    high = low * factor
    if whole:
        low, high = math.ceil(low), math.ceil(high) + 1
    numbers = {"low": float(low), "high": float(high), "scale": scale, "type": "int" if whole else "float"}
    tree = {"x": {"path": "optim.lr", "range": numbers}, "c": {"path": "a", "levels": {"one": [1], "two": None}}}
    settings = Search.model_validate({"factors": tree, "seed": seed})
    told = [Told({"x": settings.factors["x"].range.rounded(low, DIGITS), "c": "one"}, 1.0)] * 10  # type: ignore[union-attr]
    for values in (
        *suggest(settings, settings.factors, [], 2, mode="max"),
        *suggest(settings, settings.factors, told, 2, mode="min"),
    ):
        x = values["x"]
        assert isinstance(x, int if whole else float)
        assert low <= x <= high
        assert x in (low, high) or x == float(f"{x:.{DIGITS}g}") or whole
        assert values["c"] in ("one", "two")
