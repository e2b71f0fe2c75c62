"""The report's numbers as CSV and Parquet: the same as the report shows, and every epoch of every run once."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from pyarrow import csv, parquet

from simlap.record.view import StudyView
from simlap.report import build, content, render
from simlap.report.estimates import epochs, estimates
from tests.unit.report import factory
from tests.unit.report.test_race import raced

CLAIM = "filter=off < filter=on by 0.01 at pairs=arbitrary, p < 0.05"


def of_kind(view: StudyView, kind: str) -> list[dict[str, Any]]:
    return [row for row in estimates(build(view)).to_pylist() if row["kind"] == kind]


def test_every_number_of_the_report_is_there() -> None:
    view = factory.study(margin=0.01)
    report = build(view)
    means = {row["name"]: row for row in of_kind(view, "mean")}
    differences = {row["name"]: row for row in of_kind(view, "difference")}
    assert report.details is not None
    details = {one.arm: one for one in report.details.arms}
    for row in report.rows:
        assert row.final is not None
        mean, detail = means[row.arm], details[row.arm]
        assert (mean["estimate"], mean["std"], mean["n"]) == (row.final.mean, row.final.std, row.final.n)
        assert (mean["ci_low"], mean["ci_high"]) == (row.final.low, row.final.high)
        assert (mean["bca_low"], mean["bca_high"]) == detail.mean_bca
        assert (mean["rank"], mean["metric"], mean["epoch"], mean["final"]) == (
            detail.rank,
            "test/probe_top1",
            15,
            True,
        )
        if row.comparison is None:
            assert row.arm not in differences
            continue
        test, found = row.comparison.paired, differences[row.arm]
        assert test is not None
        assert (found["estimate"], found["ci_low"], found["ci_high"]) == (test.mean, test.low, test.high)
        assert (found["p_value"], found["p_adjusted"]) == (test.p_value, test.p_adjusted)
        assert (found["effect_size"], found["p_equivalence"]) == (detail.effect_size, detail.equivalence)
        assert found["factor.filter"] == row.arm.split(",")[0].removeprefix("filter=")
    assert len(of_kind(view, "effect")) == len(report.effects)
    assert len(of_kind(view, "pair")) == 15
    (claim,) = of_kind(view, "claim")
    assert (claim["name"], claim["verdict"], claim["reference"]) == (CLAIM, "holds", "filter=off,pairs=arbitrary")


def test_what_is_not_known_is_empty_and_says_why() -> None:
    view = factory.mixed()
    for row in of_kind(view, "difference"):
        assert row["estimate"] is not None or row["verdict"]
        assert row["final"] is not True or row["metric"] == "test/probe_top1"
    assert any(row["final"] is False for row in of_kind(view, "difference"))


@pytest.mark.parametrize("view", [factory.study(), factory.mixed(), raced()], ids=["done", "mixed", "race"])
def test_csv_and_parquet_hold_the_same(view: StudyView) -> None:
    expected = estimates(build(view))
    kept = parquet.read_table(io.BytesIO(content(view, "parquet")))
    assert kept.equals(expected)
    about = json.loads(kept.schema.metadata[b"simlap"])
    assert (about["study"], about["command"]) == (view.name, view.command)
    read = csv.read_csv(
        io.BytesIO(render(view, "csv").encode()),
        convert_options=csv.ConvertOptions(column_types=expected.schema, strings_can_be_null=True),
    )
    for name in expected.column_names:
        assert read[name].to_pylist() == [None if v == "" else v for v in expected[name].to_pylist()], name


def test_every_epoch_of_every_run_once() -> None:
    view = factory.mixed()
    rows = epochs(view).to_pylist()
    wanted = [
        (arm.name, cell.seed, row.epoch, row.metrics["val/probe_top1"], row.time_ms)
        for arm in view.arms
        for cell in arm.cells
        for row in cell.rows
    ]
    found = [(r["arm"], r["seed"], r["epoch"], r["val/probe_top1"], int(r["time"].timestamp() * 1000)) for r in rows]
    assert found == wanted
    results = {(arm.name, cell.seed): cell.result for arm in view.arms for cell in arm.cells if cell.result}
    told = {
        (r["arm"], r["seed"]): {"test/probe_top1": r["test/probe_top1"]}
        for r in rows
        if r["test/probe_top1"] is not None
    }
    assert told == results


def test_a_study_that_has_not_begun_has_no_epochs() -> None:
    view = factory.study(arms=[])
    assert epochs(view).num_rows == 0
