"""The race's decisions: every verdict, its error rates, and that nothing but the values of complete looks goes in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from simlap.study.boundary import nominal_levels
from simlap.study.race import Cell, Decision, Entrants, Standing, race
from simlap.study.scheduling import Race

Table = dict[str, list[list[float]]]
"""Arm -> seed -> values by epoch."""
ARMS = ("base", "a", "b", "c")


def rules(**changes: Any) -> Race:
    return Race(**{"kind": "race", "futility": 0.0, **changes})


def entrants(arms: Sequence[str], seeds: int, epochs: int = 1, **changes: Any) -> Entrants:
    return Entrants(dict.fromkeys(arms, epochs), arms[0], tuple(range(seeds)), **changes)


def done(table: Table) -> dict[str, dict[int, Cell]]:
    return {
        arm: {seed: Cell(len(curve), dict(enumerate(curve, start=1))) for seed, curve in enumerate(curves)}
        for arm, curves in table.items()
    }


def drawn(effects: Mapping[str, float], seeds: int, seed: int = 0) -> Table:
    """Normal values; paired differences have standard deviation 1."""
    random = np.random.default_rng(seed)
    shared = 3 * random.standard_normal(seeds)
    return {
        arm: [[float(v)] for v in effect + shared + random.standard_normal(seeds) / math.sqrt(2)]
        for arm, effect in effects.items()
    }


def verdicts(standing: Standing) -> dict[str, str]:
    return {arm: decision.verdict for arm, decision in standing.verdicts.items()}


def only(standing: Standing) -> Decision:
    (decision,) = standing.verdicts.values()
    return decision


def test_better_worse_and_undecided_against_the_baseline() -> None:
    standing = race(rules(), entrants(ARMS, 12), done(drawn({"base": 0, "a": 3, "b": -3, "c": 0.1}, 12)))
    assert verdicts(standing) == {"a": "better", "b": "worse", "c": "undecided"}
    better = standing.verdicts["a"]
    assert better.p_value is not None
    assert better.level is not None
    assert better.p_adjusted is not None
    assert better.low is not None
    assert better.p_value < better.level
    assert better.p_adjusted <= 0.05
    assert better.low > 0
    assert f"p {better.p_value:.3g} < {better.level:.3g}" in better.reason
    assert "no seeds are left" in standing.verdicts["c"].reason
    assert (standing.verdicts["c"].p_adjusted or 0) >= 0.05


def test_less_is_better_where_the_study_says_so() -> None:
    table = drawn({"base": 0, "a": 3}, 12)
    decision = only(race(rules(), entrants(("base", "a"), 12, mode="min"), done(table)))
    assert decision.verdict == "worse"
    assert (decision.difference or 0) > 0, "the difference keeps the metric's sign"


def test_equivalent_within_the_margin_even_where_it_is_not_zero() -> None:
    spread = [0.001 * (-1) ** seed for seed in range(8)]
    table: Table = {"base": [[0.5]] * 8, "a": [[0.51 + x] for x in spread]}
    ours = entrants(("base", "a"), 8)
    assert only(race(rules(), ours, done(table))).verdict == "better"
    decision = only(race(rules(margin=0.05), ours, done(table)))
    assert decision.verdict == "equivalent"
    assert "the difference is not 0, but does not matter" in decision.reason
    assert only(race(rules(margin=0.005), ours, done(table))).verdict == "better", "beyond the margin"


def test_futile_where_the_seeds_that_are_left_decide_nothing() -> None:
    differences = [1.0, -1.0] * 6
    table: Table = {"base": [[0.0]] * 12, "a": [[d] for d in differences]}
    standing = race(rules(futility=0.1), entrants(("base", "a"), 12), done(table))
    decision = only(standing)
    assert decision.verdict == "futile"
    assert "12 seeds would decide it with probability" in decision.reason
    assert ("a", 11) not in standing.asked
    assert only(race(rules(), entrants(("base", "a"), 12), done(table))).verdict == "undecided", (
        "futility: 0 never gives up"
    )


def test_differences_without_spread() -> None:
    ours = entrants(("base", "a", "b"), 6)
    table: Table = {"base": [[0.5]] * 6, "a": [[0.6]] * 6, "b": [[0.5]] * 6}
    standing = race(rules(), ours, done(table))
    assert verdicts(standing) == {"a": "better", "b": "undecided"}
    assert standing.verdicts["a"].p_value == 0.0
    assert verdicts(race(rules(margin=0.01), ours, done(table))) == {"a": "better", "b": "equivalent"}
    assert verdicts(race(rules(futility=0.01), ours, done(table)))["b"] == "futile"


def test_a_decided_arm_hands_its_alpha_on() -> None:
    """Holm: with `a` decided at the same look, `b` is held against alpha / 1 and not alpha / 2."""
    ours, sizes = entrants(("base", "a", "b"), 4), (4,)
    half, whole = (nominal_levels(sizes, 0.05 / m, "pocock")[0] for m in (2, 1))
    random = np.random.default_rng(0)
    noise = random.standard_normal(4)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    for p, weak in ((0.9 * half, "better"), (0.5 * (half + whole), "better"), (1.1 * whole, "undecided")):
        from scipy import stats

        shift = stats.t.isf(p / 2, 3) / 2
        table: Table = {"base": [[0.0]] * 4, "a": [[10 + x] for x in noise / 100], "b": [[shift + x] for x in noise]}
        assert verdicts(race(rules(), ours, done(table)))["b"] == weak
    table["a"] = table["base"]
    table["b"] = [[stats.t.isf(0.5 * (half + whole) / 2, 3) / 2 + x] for x in noise]
    assert verdicts(race(rules(), ours, done(table)))["b"] == "undecided", "nobody handed anything on"


def test_against_best_an_arm_that_any_other_beats_is_dropped() -> None:
    table = drawn({"base": 0, "a": 5, "b": 0.1, "c": -5}, 16)
    standing = race(rules(against="best"), entrants(ARMS, 16), done(table))
    assert verdicts(standing) == {"base": "worse", "a": "better", "b": "worse", "c": "worse"}
    assert standing.verdicts["base"].against == "a"
    assert "better than all others" in standing.verdicts["a"].reason


def test_against_best_the_leader_s_equals_are_equivalent() -> None:
    table: Table = {
        "base": [[0.0 + 0.01 * s] for s in range(8)],
        "a": [[1.0 + 0.01 * (-1) ** s] for s in range(8)],
        "b": [[1.0 - 0.01 * (-1) ** s] for s in range(8)],
    }
    standing = race(rules(against="best", margin=0.2), entrants(("base", "a", "b"), 8), done(table))
    assert verdicts(standing) == {"base": "worse", "a": "equivalent", "b": "equivalent"}


def test_against_best_without_a_difference_nothing_is_decided() -> None:
    table = drawn({"base": 0, "a": 0, "b": 0}, 6)
    assert set(verdicts(race(rules(against="best"), entrants(("base", "a", "b"), 6), done(table))).values()) == {
        "undecided"
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_an_arm_with_a_bad_cell_is_undecided_and_never_compared_on_survivors(value: float | None) -> None:
    table = drawn({"base": 0, "a": 9, "b": 9}, 8)
    cells = done(table)
    cells["a"][2] = Cell(0, failed="out of memory") if value is None else Cell(1, {1: value})
    standing = race(rules(), entrants(("base", "a", "b"), 8), cells)
    assert verdicts(standing) == {"a": "undecided", "b": "better"}
    why = "failed: out of memory" if value is None else f"{value} at epoch 1"
    assert f"seed 2 of a {why}" in standing.verdicts["a"].reason.replace("has ", "")
    assert standing.verdicts["a"].p_value is None
    assert ("a", 7) not in standing.asked, "no more seeds for it"


def test_a_bad_baseline_decides_nothing() -> None:
    cells = done(drawn({"base": 0, "a": 9}, 8))
    cells["base"][0] = Cell(0, failed="killed")
    decision = only(race(rules(), entrants(("base", "a"), 8), cells))
    assert decision.verdict == "undecided"
    assert "seed 0 of base failed: killed" in decision.reason


def test_rungs_give_up_and_never_decide() -> None:
    """At epoch 1 `a` is far better and `b` the same; at the end it is the other way round."""
    table: Table = {
        "base": [[0.0, 0.0]] * 12,
        "a": [[9.0 + 0.1 * s, 0.0] for s in range(12)],
        "b": [[0.1 * (-1) ** s, 9.0 + 0.1 * s] for s in range(12)],
    }
    ours = entrants(("base", "a", "b"), 12, epochs=2)
    standing = race(rules(futility=0.1, futility_epochs=[1], first_seeds=6), ours, done(table))
    rung = standing.looks[0]
    assert (rung.epochs, rung.spent) == (1, 0.0)
    assert {d.arm: d.verdict for d in rung.decisions} == {"a": "undecided", "b": "futile"}
    assert standing.asked["b", 0] == 1, "given up at the rung"
    assert "epoch 1 of 6 seeds" in rung.decisions[1].reason
    assert standing.verdicts["a"].verdict != "better"
    assert all(d.verdict in ("futile", "undecided") for look in standing.looks if look.epochs for d in look.decisions)


def test_a_failed_cell_at_a_rung_is_left_to_the_last_epoch() -> None:
    cells = done({arm: [[v[0], v[0]] for v in values] for arm, values in drawn({"base": 0, "a": 9}, 8).items()})
    cells["a"][0] = Cell(2, {2: 9.0})
    standing = race(rules(futility=0.1, futility_epochs=[1]), entrants(("base", "a"), 8, epochs=2), cells)
    assert "not looked at after epoch 1: seed 0 of a has no value at epoch 1" in standing.looks[0].decisions[0].reason
    assert verdicts(standing) == {"a": "better"}


def played(ours: Entrants, setting: Race, table: Table, order: np.random.Generator) -> Standing:
    """Run what is needed, one cell at a time in random order, replaying the race after each."""
    everything = done(table)
    cells: dict[str, dict[int, Cell]] = {}
    while (standing := race(setting, ours, cells)).needed:
        need = standing.needed[int(order.integers(len(standing.needed)))]
        values = {e: v for e, v in everything[need.arm][need.seed].values.items() if e <= need.epochs}
        cells.setdefault(need.arm, {})[need.seed] = Cell(need.epochs, values)
    return standing


@settings(max_examples=8, deadline=None)
@given(st.permutations(ARMS), st.integers(0, 10_000), st.sampled_from(["baseline", "best"]))
def test_neither_the_order_of_arms_nor_of_arrival_matters(arms: Sequence[str], seed: int, against: str) -> None:
    setting = rules(against=against, futility=0.1, futility_epochs=[1], margin=0.8, first_seeds=3)
    table = drawn({"base": 0, "a": 1.5, "b": 0, "c": -0.7}, 8, seed)
    table = {arm: [[0.5 * v[0], v[0]] for v in values] for arm, values in table.items()}
    usual = race(setting, entrants(ARMS, 8, 2), done(table))
    shuffled = Entrants(dict.fromkeys(arms, 2), "base", tuple(range(8)))
    one_by_one = played(shuffled, setting, {arm: table[arm] for arm in arms}, np.random.default_rng(seed))
    assert one_by_one.looks == usual.looks
    assert one_by_one.verdicts == usual.verdicts
    assert one_by_one.asked == usual.asked


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.data())
def test_a_resumed_race_keeps_its_decisions(seed: int, data: st.DataObject) -> None:
    """Whatever has arrived, its looks are the first ones of the whole race."""
    table = drawn({"base": 0, "a": 1.5, "b": 0}, 10, seed)
    ours = entrants(("base", "a", "b"), 10)
    whole = race(rules(), ours, done(table))
    some = {
        arm: {s: c for s, c in cells.items() if data.draw(st.booleans()) or s < 4} for arm, cells in done(table).items()
    }
    part = race(rules(), ours, some)
    assert part.looks == whole.looks[: len(part.looks)]
    assert part.verdicts.items() <= whole.verdicts.items()
    assert part.asked.items() <= whole.asked.items()


def test_what_is_needed_first_are_the_first_seeds_of_all_arms() -> None:
    standing = race(rules(first_seeds=3, futility=0.1, futility_epochs=[2]), entrants(("base", "a"), 9, epochs=5), {})
    assert [(n.arm, n.seed, n.epochs) for n in standing.needed] == [(a, s, 2) for a in ("base", "a") for s in range(3)]
    assert standing.looks == []


def test_protected_arms_get_all_seeds_in_the_end() -> None:
    ours = entrants(("base", "a"), 12, protected=frozenset({"a"}))
    cells = done(drawn({"base": 0, "a": 9}, 12))
    cells["a"] = {seed: cell for seed, cell in cells["a"].items() if seed < 4}
    standing = race(rules(), ours, cells)
    assert verdicts(standing) == {"a": "better"}
    assert [(need.arm, need.seed) for need in standing.needed] == [("a", seed) for seed in range(4, 12)]


def test_equal_arms_are_called_different_as_rarely_as_stated() -> None:
    """1,000 studies of two equal arms, without futility: at most 5 % and three binomial standard errors."""
    wrong = [
        only(race(rules(), entrants(("base", "a"), 24), done(drawn({"base": 0, "a": 0}, 24, s)))) for s in range(1000)
    ]
    share = np.mean([decision.verdict in ("better", "worse") for decision in wrong])
    assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
    assert share >= 0.05 - 3 * math.sqrt(0.05 * 0.95 / 1000), "the boundaries use what they may"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("against", "spending"), [("baseline", "pocock"), ("best", "pocock"), ("baseline", "obrien_fleming")]
)
def test_the_family_of_equal_arms_keeps_its_error(against: str, spending: str) -> None:
    setting, arms = rules(against=against, spending=spending, margin=0.9), dict.fromkeys(ARMS, 0.0)
    found = [race(setting, entrants(ARMS, 16), done(drawn(arms, 16, seed))) for seed in range(1000)]
    share = np.mean([any(v in ("better", "worse") for v in verdicts(standing).values()) for standing in found])
    assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.slow
def test_arms_at_the_margin_are_called_equivalent_as_rarely_as_stated() -> None:
    arms = {"base": 0.0, "a": 1.0}
    found = [race(rules(margin=1.0), entrants(("base", "a"), 12), done(drawn(arms, 12, seed))) for seed in range(1000)]
    share = np.mean([only(standing).verdict == "equivalent" for standing in found])
    assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.slow
def test_one_standard_deviation_is_found_in_half_the_epochs() -> None:
    """The defaults, up to 24 seeds: power at least 90 % with at most 50 % of the epochs of the fixed study."""
    arms = {"base": 0.0, "a": 1.0}
    found = [race(Race(kind="race"), entrants(("base", "a"), 24), done(drawn(arms, 24, seed))) for seed in range(1000)]
    assert np.mean([only(standing).verdict == "better" for standing in found]) >= 0.9
    assert np.mean([sum(standing.asked.values()) / 48 for standing in found]) <= 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"first_seeds": 2}, "greater than or equal to 3"),
        ({"alpha": 0.0}, "greater than"),
        ({"margin": 0.0}, "greater than 0"),
        ({"futility": 0.1, "futility_epochs": [4, 2]}, "must ascend"),
        ({"futility_epochs": [2]}, "no effect"),
        ({"against": "mean"}, "'baseline' or 'best'"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        rules(**changes)


def test_too_few_seeds_and_a_baseline_that_is_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="4 seeds first, and the study has 3"):
        race(rules(), entrants(("base", "a"), 3), {})
    with pytest.raises(ValueError, match="nobody is not among the arms"):
        race(rules(), Entrants({"a": 1}, "nobody", (0, 1, 2, 3)), {})


def test_looks_end_at_the_planned_seeds() -> None:
    assert rules(first_seeds=4, step=3).looks(12) == (4, 7, 10, 12)
    assert rules(first_seeds=4, step=3).looks(4) == (4,)
