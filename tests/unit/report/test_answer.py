"""The sentences and the notices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simlap.record.view import EpochRow, StudyView
from simlap.report import build
from simlap.report.words import decimals_for, p_text, unit_of
from tests.unit.report import factory

OFF = "filter=off,pairs=distinct"


def texts(view: StudyView) -> list[str]:
    return [s.text for s in build(view).sentences]


def test_a_clear_difference_names_levels_size_and_certainty() -> None:
    report = build(factory.study())
    effect = next(e for e in report.effects if e.factor == "filter" and e.at == {"pairs": "distinct"})
    test = effect.comparison.paired
    assert test is not None
    assert test.half_width is not None
    size, half = f"{-100 * test.mean:.1f}", f"{100 * test.half_width:.1f}"
    expected = (
        f"With pairs=distinct, filter off is worse than filter on by {size} ± {half} points "
        "(95% CI, paired over 5 seeds, p < 0.001)."
    )
    assert expected in texts(factory.study())


def test_no_clear_difference_is_called_so() -> None:
    found = [s for s in build(factory.study()).sentences if s.text.startswith("With pairs=identical, filter off")]
    assert len(found) == 1
    assert found[0].verdict == "same"
    assert "is not distinguishable from filter on (" in found[0].text


def test_smaller_is_better_where_the_mode_says_so() -> None:
    up = {s.text.split(",")[0]: s.verdict for s in build(factory.study()).sentences if "filter off" in s.text}
    down = {
        s.text.split(",")[0]: s.verdict for s in build(factory.study(mode="min")).sentences if "filter off" in s.text
    }
    assert up["With pairs=distinct"] == "worse"
    assert down["With pairs=distinct"] == "better"


def test_an_early_stop_is_said_with_epoch_and_split() -> None:
    found = next(t for t in texts(factory.mixed()) if t.startswith("With pairs=distinct, filter off"))
    assert "filter off stopped early, compared at epoch 5 on validation: filter off is worse than filter on" in found
    found = next(t for t in texts(factory.mixed()) if t.startswith("With pairs=arbitrary, filter off"))
    assert "filter off not finished (1 failed), compared at epoch 9 on validation" in found


def test_one_seed_gives_no_verdict() -> None:
    report = build(factory.study(seeds=[0]))
    assert {s.verdict for s in report.sentences} == {"open"}
    assert all("no interval" in s.text for s in report.sentences)
    assert any("Only one seed" in n.text for n in report.notices)


def test_nothing_to_compare_yet_is_said_with_the_reason() -> None:
    view = factory.stop(factory.study(), OFF, dict.fromkeys(factory.SEEDS, 0), "new")
    found = next(s for s in build(view).sentences if s.text.startswith("With pairs=distinct, filter off"))
    assert found.verdict == "open"
    assert "cannot be compared" in found.text
    assert "has not finished an epoch yet" in found.text


def test_a_finished_study_has_no_notices() -> None:
    assert build(factory.study()).notices == []


def test_notices_of_a_mixed_study() -> None:
    found = build(factory.mixed()).notices
    failure = next(n for n in found if n.kind == "failure")
    assert "filter=off,pairs=arbitrary, seed 3, failed after epoch 9" in failure.text
    assert "RuntimeError" in failure.detail
    assert any("3 of 6 arms" in n.text and f"{OFF}: stopped at 5–8" in n.detail for n in found)
    assert any("optimistic" in n.text for n in found)


def test_divergence_is_said() -> None:
    view = factory.study()
    cell = next(a for a in view.arms if a.name == OFF).cells[2]
    rows = [*cell.rows[:-1], EpochRow(15, 0, {"val/probe_top1": float("inf")})]
    found = build(factory.with_cells(view, OFF, {2: replace(cell, rows=rows)})).notices
    assert any("diverged" in n.text and "seed 2 from epoch 15" in n.detail for n in found)


@pytest.mark.parametrize(
    ("p", "text", "bare"),
    [
        (0.0, "p < 0.001", "< 0.001"),
        (0.012, "p = 0.012", "0.012"),
        (1.0, "p = 1", "1"),
        (0.9999, "p = 1", "1"),
        (None, "", ""),
    ],
)
def test_p_values(p: float | None, text: str, bare: str) -> None:
    assert p_text(p) == text
    assert p_text(p, bare=True) == bare


@pytest.mark.parametrize(
    ("metric", "noise", "value", "decimals"),
    [
        ("test/probe_top1", 0.008, 0.969, 1),
        ("test/probe_top1", 0.0008, 0.969, 2),
        ("test/probe_top1", 0.04, 0.969, 1),
        ("test/probe_top1", None, 0.969, 1),
        ("test/probe_top1", 0.0, 0.969, 1),
        ("val/probe_loss", 0.012, 0.693, 3),
        ("val/probe_loss", None, 0.693, 4),
        ("val/probe_loss", 50.0, 2000.0, 0),
    ],
)
def test_decimals_follow_the_noise(metric: str, noise: float | None, value: float, decimals: int) -> None:
    assert decimals_for(unit_of(metric), noise, value) == decimals


def test_no_minus_zero() -> None:
    assert unit_of("test/probe_top1").number(-0.0001, 1, sign=True) == "0.0"
    assert unit_of("test/probe_top1").number(-0.071, 1, sign=True) == "-7.1"


@pytest.mark.parametrize(("mean", "word"), [(0.001, "near 0"), (0.999, "near 1"), (0.5, None), (0.02, None)])
def test_gates_that_say_nothing_are_a_warning(mean: float, word: str | None) -> None:
    view = factory.study()
    arm = view.arms[1]
    last = arm.cells[0].rows[-1]
    row = replace(last, metrics={**last.metrics, "gate/mean": mean})
    for kind, warns in (("sigmoid", word is not None), ("open", False)):
        config = {"method": {"gate": {"kind": kind}}}
        cell = replace(arm.cells[0], rows=[*arm.cells[0].rows[:-1], row], config=config)
        changed = replace(view, arms=[view.arms[0], replace(arm, cells=[cell, *arm.cells[1:]]), *view.arms[2:]])
        found = [n for n in build(changed).notices if "gates" in n.text]
        assert bool(found) == warns
        for notice in found:
            assert notice.level == "warning"
            assert arm.name in notice.text
            assert str(word) in notice.detail


@pytest.mark.parametrize(
    ("pairs", "kind", "warns"),
    [("arbitrary", "sigmoid", True), ("identical", "sigmoid", False), ("arbitrary", "open", False)],
)
@pytest.mark.parametrize("source", ["evaluation", "simlap gates"])
def test_failure_signatures_are_a_warning(source: str, pairs: str, kind: str, warns: bool) -> None:
    """From the run's own evaluation, and from what was found afterwards. With identical pairs, mixed gates mean nothing."""
    view = factory.study()
    arm = view.arms[1]
    metrics = {"activation": 0.5, "pair_std": 0.001, "dimensions_per_pair": 1.2}
    config = {"method": {"gate": {"kind": kind}, "pairs": pairs}}
    cells, by_seed = [], {}
    for number, cell in enumerate(arm.cells):
        rows = cell.rows
        if number < 2 and source == "evaluation":
            last = rows[-1]
            added = {f"gates/{name}": value for name, value in metrics.items()}
            rows = [*rows[:-1], replace(last, metrics={**last.metrics, **added})]
        elif number < 2:
            by_seed[str(cell.seed)] = metrics
        cells.append(replace(cell, rows=rows, config=config))
    ids = {seed: next(c.cell_id for c in cells if str(c.seed) == seed) for seed in by_seed}
    gates = {"arms": [{"arm": arm.name, "cells": ids, "by_seed": by_seed}]}
    changed = replace(view, arms=[view.arms[0], replace(arm, cells=cells), *view.arms[2:]], gates=gates)
    found = [n for n in build(changed).notices if "gate" in n.text or "dimension" in n.text]
    texts = [
        f"{arm.name}: in 2 of 5 cells all pairs have the same gate.",
        f"{arm.name}: in 2 of 5 cells pairs open one dimension.",
    ]
    assert [n.text for n in found] == (texts if warns else [])
    for notice in found:
        assert notice.level == "warning"
        assert notice.detail.startswith("seed 0: ")
    if warns:
        assert "standard deviation over pairs 0.0010" in found[0].detail


def test_what_was_found_of_other_runs_is_not_said() -> None:
    view = factory.study()
    arm = view.arms[1]
    config = {"method": {"gate": {"kind": "sigmoid"}, "pairs": "arbitrary"}}
    cells = [replace(cell, config=config) for cell in arm.cells]
    failed = {"activation": 0.5, "pair_std": 0.001}
    gates = {"arms": [{"arm": arm.name, "cells": {"0": "another run"}, "by_seed": {"0": failed}}]}
    changed = replace(view, arms=[view.arms[0], replace(arm, cells=cells), *view.arms[2:]], gates=gates)
    assert not [n for n in build(changed).notices if "same gate" in n.text]
