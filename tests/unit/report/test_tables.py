"""The table of arms in every rendering, and summary.json."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from simlap.record.view import CellState
from simlap.report import build, print_report, render, summary_of
from simlap.report.words import TEST_DECISIONS
from tests.unit.report import factory

BASELINE, OFF = "filter=on,pairs=arbitrary", "filter=off,pairs=distinct"
STATES: list[CellState] = ["new", "running", "interrupted", "stopped", "failed", "done"]


def terminal(view: Any, width: int = 80) -> str:
    stream = io.StringIO()
    print_report(view, Console(file=stream, width=width))
    return stream.getvalue()


def test_rows_of_a_mixed_study() -> None:
    rows = {row.arm: row for row in build(factory.mixed()).rows}
    assert list(rows) == [arm.name for arm in factory.mixed().arms]
    baseline, stopped = rows[BASELINE], rows[OFF]
    values = [c.result["test/probe_top1"] for c in factory.mixed().arms[0].cells]
    assert re.fullmatch(r"\d\d\.\d ± \d\.\d", baseline.final_text)
    assert baseline.final_text.startswith(f"{100 * np.mean(values):.1f} ±")
    assert (baseline.difference_text, baseline.p, baseline.at) == ("baseline", "", "")
    assert (stopped.done, stopped.planned, stopped.state, stopped.status) == (0, 5, "stopped", "stopped at 5–8")
    assert (stopped.final, stopped.final_text, stopped.at) == (None, "", "val @ epoch 5")
    assert re.fullmatch(r"-\d+\.\d \[-\d+\.\d, -\d+\.\d\]", stopped.difference_text)
    failed, running = rows["filter=off,pairs=arbitrary"], rows["filter=on,pairs=identical"]
    assert (failed.done, failed.planned, failed.status, failed.final) == (4, 5, "1 failed", None)
    assert (running.done, running.status, running.at) == (4, "1 running", "val @ epoch 11")
    assert rows["filter=on,pairs=distinct"].at == "test"


def test_terminal_fits_80_columns() -> None:
    text = terminal(factory.mixed())
    assert max(map(len, text.splitlines())) <= 80
    assert "stopped at 5–8" in text
    assert "val @ 5" in text
    assert "RuntimeError: loss is <nan> & not finite" in " ".join(text.split())


def test_markup_in_names_and_errors_is_printed_as_it_is() -> None:
    view = factory.study()
    arms = [replace(a, name=f"[red]{a.name}[/]") for a in view.arms]
    text = terminal(replace(view, arms=arms), width=160)
    assert "[red]filter=off, pairs=distinct[/]" in text


def test_markdown_shape() -> None:
    text = render(factory.mixed(), "md").partition("## Arms")[2].partition("## ")[0]
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 6
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {8}
    assert "val @ epoch 5" in text
    assert "nan" not in text.replace("<nan>", "").lower().split()


def test_markdown_escapes_pipes() -> None:
    view = factory.study()
    text = render(replace(view, arms=[replace(a, name=f"a|b*{i}") for i, a in enumerate(view.arms)]), "md")
    assert "| a\\|b\\*0 |" in text


def test_tables_say_when_decisions_were_made_on_the_test_set() -> None:
    view = factory.study(validation=False, metric="val/probe_top1")
    for text in (terminal(view), render(view, "md"), render(view, "html"), render(view, "latex")):
        assert TEST_DECISIONS in " ".join(text.split())
    assert summary_of(build(view))["note"] == TEST_DECISIONS
    for text in (terminal(factory.study()), render(factory.study(), "md"), render(factory.study(), "html")):
        assert TEST_DECISIONS not in text


def test_summary_has_the_report_metric_only_where_it_exists() -> None:
    found = summary_of(build(factory.mixed()))
    assert (found["schema_version"], found["metric"]) == (1, "test/probe_top1")
    assert found["arms"][OFF] == {"n": 0}  # no validation number among the test numbers
    full = found["arms"]["filter=on,pairs=distinct"]
    assert set(full) == {
        "n", "mean", "std", "ci_low", "ci_high", "difference", "difference_ci_low", "difference_ci_high", "p_value", "p_adjusted",
    }  # fmt: skip
    assert set(found["arms"][BASELINE]) == {"n", "mean", "std", "ci_low", "ci_high"}
    stopped = found["comparisons"][OFF]
    assert (stopped["metric"], stopped["epoch"], stopped["final"], stopped["n"]) == ("val/probe_top1", 5, False, 5)
    assert stopped["difference_ci_low"] < stopped["difference"] < stopped["difference_ci_high"] < 0
    assert found["markdown"].startswith("| Arm |")


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from(STATES), st.integers(0, factory.EPOCHS)), min_size=10, max_size=10),
    st.sampled_from([[0], [0, 1], [0, 1, 2, 3, 4], [3, 4, 9]]),
    st.floats(allow_nan=True, allow_infinity=True),
)
def test_any_mixture_of_states_gives_finite_numbers(
    cells: list[tuple[CellState, int]], seeds: list[int], value: float
) -> None:
    """Whatever happened to ten of the cells: every rendering works and shows no NaN."""
    view = factory.study(seeds=seeds)
    for name, part in ((BASELINE, cells[:5]), (OFF, cells[5:])):
        for seed, (state, epoch) in enumerate(part):
            if state != "done":
                view = factory.stop(view, name, {seed: epoch}, state)
    cell = replace(view.arms[2].cells[0], result={"test/probe_top1": value})
    report = build(factory.with_cells(view, view.arms[2].name, {0: cell}))
    summary = summary_of(report)

    def check(node: object) -> None:
        if isinstance(node, dict):
            for child in node.values():
                check(child)
        elif isinstance(node, float):
            assert math.isfinite(node)

    check(summary)
    json.dumps(summary, allow_nan=False)
    for text in (render(report, "md"), render(report, "latex")):
        assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)
    for row in report.rows:
        finished = all(c.state == "done" for a in view.arms if a.name == row.arm for c in a.cells if c.seed in seeds)
        assert row.final is None or finished
