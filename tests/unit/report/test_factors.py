"""Models of all factors against published analyses, and against simulated effects."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from simlap.report.factors import Measured, anova, factor_tests, importance, mixed

# R's `npk`: a factorial experiment on peas in six blocks (Venables & Ripley 2002): block, N, P, K, yield
NPK = """
1 0 1 1 49.5|1 1 1 0 62.8|1 0 0 0 46.8|1 1 0 1 57.0|2 1 0 0 59.8|2 1 1 1 58.5|2 0 0 1 55.5|2 0 1 0 56.0
3 0 1 0 62.8|3 1 1 1 55.8|3 1 0 0 69.5|3 0 0 1 55.0|4 1 0 0 62.0|4 1 1 1 48.8|4 0 0 1 45.5|4 0 1 0 44.2
5 1 1 0 52.0|5 0 0 0 51.5|5 1 0 1 49.8|5 0 1 1 48.8|6 1 0 1 57.2|6 1 1 0 59.0|6 0 1 1 53.2|6 0 0 0 56.0
"""
# R's `nlme::Machines`: scores of six workers at three machines, three times (Milliken & Johnson 1992)
MACHINES = {
    "A": "52.0 52.8 53.1 51.8 52.8 53.1 60.0 60.2 58.4 51.1 52.3 50.3 50.9 51.8 51.4 46.4 44.8 49.2",
    "B": "62.1 62.6 64.0 59.7 60.0 59.0 68.6 65.8 69.7 63.2 62.8 62.2 64.8 65.0 65.4 43.7 44.2 43.0",
    "C": "67.5 67.2 66.9 61.5 61.7 62.3 70.8 70.6 71.0 64.1 66.2 64.0 72.1 72.0 71.1 62.0 61.4 60.5",
}


def test_anova_is_r_s() -> None:
    """`?npk`: summary(aov(yield ~ block + N*P*K, npk)). N*P*K itself is confounded with the blocks."""
    rows = [plot.split() for line in NPK.strip().splitlines() for plot in line.split("|")]
    block, n, p, k, value = zip(*rows, strict=True)
    table = anova(
        {"block": block, "N": n, "P": p, "K": k, "value": [*map(float, value)]},
        "value ~ C(block) + (C(N, Sum) + C(P, Sum) + C(K, Sum)) ** 2",
    )
    found = {
        name.replace("C(", "").replace(", Sum)", ""): (row["F"], row["PR(>F)"])
        for name, row in table.iterrows()
        if name != "Residual"
    }
    assert found == {
        "block)": pytest.approx((4.447, 0.01594), abs=5e-4),
        "N": pytest.approx((12.259, 0.00437), abs=5e-4),
        "P": pytest.approx((0.544, 0.47490), abs=5e-4),
        "K": pytest.approx((6.166, 0.02880), abs=5e-4),
        "N:P": pytest.approx((1.378, 0.26317), abs=5e-4),
        "N:K": pytest.approx((2.146, 0.16865), abs=5e-4),
        "P:K": pytest.approx((0.031, 0.86275), abs=5e-4),
    }
    assert int(table.loc["Residual", "df"]) == 12


def test_mixed_model_is_nlme_s() -> None:
    """Pinheiro & Bates 2000, section 1.2: lme(score ~ Machine, random = ~1 | Worker)."""
    rows = [(m, i // 3, float(v)) for m, text in MACHINES.items() for i, v in enumerate(text.split())]
    machine, worker, score = zip(*rows, strict=True)
    fit = mixed({"score": score, "machine": machine, "worker": worker}, "score ~ C(machine)", "worker")
    assert [*fit.fe_params] == pytest.approx([52.356, 7.967, 13.917], abs=5e-4)
    assert [*fit.bse_fe] == pytest.approx([2.229, 1.054, 1.054], abs=1e-3)
    assert (float(fit.cov_re.iloc[0, 0]) ** 0.5, fit.scale**0.5) == pytest.approx((5.147, 3.162), abs=1e-3)


def runs(effect: float, interaction: float = 0.0, seeds: int = 5) -> list[Measured]:
    rng = np.random.default_rng(3)
    shared = rng.standard_normal(seeds)
    return [
        Measured(
            s,
            {"a b": a, "pairs": p, "fixed": "x"},
            float(
                shared[s] + effect * (a == "on") + interaction * (a == "on" and p == "3") + 0.1 * rng.standard_normal()
            ),
        )
        for s, a, p in itertools.product(range(seeds), ["on", "off"], ["1", "2", "3"])
    ]


def test_main_effects_and_interactions_of_a_complete_design() -> None:
    found = factor_tests(runs(0.5), ["a b", "pairs", "fixed"])
    assert found is not None
    assert (found.method, found.residual_df) == ("anova", 30 - 1 - 4 - 5)
    assert [(term.name, term.df) for term in found.terms] == [("a b", 1), ("pairs", 2), ("a b × pairs", 2)]
    assert found.terms[0].p_value < 1e-6
    assert found.terms[0].share == pytest.approx(0.9, abs=0.1)
    assert min(term.p_value for term in found.terms[1:]) > 0.01
    found = factor_tests(runs(0.0, 0.8), ["a b", "pairs"])
    assert found is not None
    assert found.terms[2].p_value < 1e-6


def test_a_design_that_cannot_tell_interactions_has_main_effects() -> None:
    rows = [row for row in runs(0.5) if row.levels["a b"] == "on" or row.levels["pairs"] == "1"]
    found = factor_tests(rows, ["a b", "pairs"])
    assert found is not None
    assert [term.name for term in found.terms] == ["a b", "pairs"]
    assert found.terms[0].p_value < 1e-3


def test_factors_that_go_together_cannot_be_told_apart() -> None:
    rows = [row for row in runs(0.5) if (row.levels["a b"] == "on") == (row.levels["pairs"] == "1")]
    rows = [row for row in rows if row.levels["pairs"] != "3"]
    assert factor_tests(rows, ["a b", "pairs"]) is None


def test_missing_cells_make_a_mixed_model() -> None:
    found = factor_tests(runs(0.5)[:-2], ["a b", "pairs"])
    assert found is not None
    assert (found.method, found.residual_df) == ("mixed", None)
    assert [(term.name, term.df) for term in found.terms] == [("a b", 1), ("pairs", 2)]
    assert found.terms[0].p_value < 1e-6
    assert found.terms[0].share is None


def test_one_seed_or_one_level_is_no_model() -> None:
    assert factor_tests(runs(0.5, seeds=1), ["a b", "pairs"]) is None
    assert factor_tests(runs(0.5), ["fixed"]) is None


@pytest.mark.parametrize("mode", ["max", "min"])
def test_importance_of_sampled_factors(mode: str) -> None:
    rng = np.random.default_rng(0)
    points = [{"lr": float(10 ** rng.uniform(-4, -1)), "decay": float(rng.uniform())} for _ in range(60)]
    sign = -1 if mode == "max" else 1
    values = [sign * abs(np.log10(p["lr"]) + 2.5) + 0.01 * rng.standard_normal() for p in points]
    found = importance(points, values, mode=mode, log=["lr"])  # type: ignore[arg-type]
    assert found is not None
    assert found["lr"] > 0.8
    assert sum(found.values()) == pytest.approx(1.0)
    assert importance(points[:19], values[:19], mode="max") is None


@pytest.mark.parametrize(
    "rows",
    [
        [(0, "x", 0.4), (1, "y", 0.5)],  # of each arm, another seed failed
        [(s, f, 0.1) for s in range(4) for f in "xy"][1:],
        [(s, f, 0.1) for s in range(4) for f in "xy"],
    ],
    ids=["two left", "no noise, one missing", "no noise"],
)
def test_where_nothing_is_left_to_measure_noise_by(rows: list[tuple[int, str, float]]) -> None:
    assert factor_tests([Measured(seed, {"f": level}, value) for seed, level, value in rows], ["f"]) is None


def test_a_fit_without_errors_is_none() -> None:
    data = {"value": [1e300 * (i + 1) for i in range(7)], "a": [*"xyxyxyx"], "seed": [*"aabbccd"]}
    assert mixed(data, "value ~ C(a)", "seed") is None
