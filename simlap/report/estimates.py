"""The numbers of the report as tables for other programs: every estimate in one row, and every epoch of every run."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from simlap.record.view import ArmView, CellView, StudyView
from simlap.report.compare import Comparison

if TYPE_CHECKING:
    from simlap.report.build import Report

_TEXT, _NUMBER, _COUNT = pa.string(), pa.float64(), pa.int64()
SCHEMA: dict[str, pa.DataType] = {
    "kind": _TEXT,
    "name": _TEXT,
    "reference": _TEXT,
    "factor": _TEXT,
    "level": _TEXT,
    "reference_level": _TEXT,
    "at": _TEXT,
    "metric": _TEXT,
    "epoch": _COUNT,
    "final": pa.bool_(),
    "n": _COUNT,
    "estimate": _NUMBER,
    "std": _NUMBER,
    "ci_low": _NUMBER,
    "ci_high": _NUMBER,
    "bca_low": _NUMBER,
    "bca_high": _NUMBER,
    "p_value": _NUMBER,
    "p_adjusted": _NUMBER,
    "p_sign_flip": _NUMBER,
    "p_equivalence": _NUMBER,
    "effect_size": _NUMBER,
    "rank": _COUNT,
    "more_seeds": _COUNT,
    "verdict": _TEXT,
}
"""Columns of `estimates`; after them, one named `factor.<name>` for every factor."""


def estimates(report: Report) -> pa.Table:
    """One row for each number that the report gives with its interval; `kind` says what it is.

    `mean`: of an arm (`name`) over seeds. `difference`: the arm minus the baseline (`reference`). `effect`: a level of a
    factor minus the baseline's level, all else as `at` says. `pair`: any two arms. `claim`: of the two arms that it compares,
    the claimed upper one minus the lower. Accuracies are fractions. `final`: at the end of training, on the report metric;
    else at `epoch`. `std` and intervals are over seeds, `p_adjusted` is Holm's over all rows of a kind.
    """
    study = report.study
    details = {one.arm: one for one in report.details.arms} if report.details is not None else {}
    rows: list[dict[str, Any]] = []
    for row, arm in zip(report.rows, study.arms, strict=True):
        factors = {f"factor.{name}": level for name, level in arm.levels.items()}
        comparison, detail = row.comparison, details.get(row.arm)
        mean: dict[str, Any] = {"kind": "mean", "name": row.arm, "verdict": row.status, **factors}
        estimate = row.final
        if estimate is not None:
            mean |= {"metric": study.report_metric, "epoch": study.epochs, "final": True}
        elif comparison is not None and comparison.values is not None:
            estimate = comparison.values
            mean |= {"metric": comparison.metric, "epoch": comparison.epoch, "final": comparison.final}
        if estimate is not None:
            mean |= {"n": estimate.n, "estimate": estimate.mean, "std": estimate.std}
            mean |= {"ci_low": estimate.low, "ci_high": estimate.high}
        if detail is not None:
            mean |= _interval(detail.mean_bca) | {"rank": detail.rank}
        rows.append(mean)
        if comparison is None:
            continue
        difference: dict[str, Any] = {"kind": "difference", "name": row.arm, **_compared(comparison), **factors}
        if detail is not None:
            difference |= _interval(detail.difference_bca)
            difference |= {"effect_size": detail.effect_size, "p_sign_flip": detail.sign_flip}
            difference |= {"p_equivalence": detail.equivalence, "more_seeds": detail.more_seeds}
        rows.append(difference)
    for effect in report.effects:
        at = ", ".join(f"{name}={level}" for name, level in effect.at.items())
        level = {"factor": effect.factor, "level": effect.level, "reference_level": effect.reference_level, "at": at}
        rows.append({"kind": "effect", "name": effect.comparison.arm, **level, **_compared(effect.comparison)})
    for pair in report.details.pairs if report.details is not None else ():
        test, where = pair.test, report.details
        assert where is not None
        rows.append(
            {
                "kind": "pair", "name": pair.arm, "reference": pair.reference, "metric": where.metric, "epoch": where.epoch,
                "final": where.metric == study.report_metric, "n": test.n, "estimate": test.mean, "ci_low": test.low,
                "ci_high": test.high, "p_value": test.p_value, "p_adjusted": test.p_adjusted,
            }
        )  # fmt: skip
    for one in report.judged:
        rows.append(
            {
                "kind": "claim", "name": one.claim, "reference": one.lower or None, "metric": one.metric or None,
                "at": one.at or None, "n": one.n or None, "estimate": one.difference, "ci_low": one.low,
                "ci_high": one.high, "p_value": one.p_value, "p_adjusted": one.p_adjusted, "verdict": one.verdict,
            }
        )  # fmt: skip
    columns = SCHEMA | {f"factor.{name}": _TEXT for name in study.factors}
    return pa.Table.from_pylist(rows, schema=pa.schema(list(columns.items())))


def epochs(study: StudyView) -> pa.Table:
    """One row for each epoch of each arm's runs: who, when, and every metric; results stand at a run's last epoch."""
    fixed = {
        "arm": _TEXT, **{f"factor.{name}": _TEXT for name in study.factors}, "seed": _COUNT, "cell_id": _TEXT,
        "state": _TEXT, "epoch": _COUNT, "time": pa.timestamp("ms", tz="UTC"),
    }  # fmt: skip
    cells = [cell for arm in study.arms for cell in arm.cells]
    names = sorted(
        {name for cell in cells for row in cell.rows for name in row.metrics}.union(*(c.result for c in cells))
    )
    schema = pa.schema([*fixed.items(), *((name, _NUMBER) for name in names)])
    tables = [
        pa.Table.from_pylist([row for cell in arm.cells for row in _epochs(arm, cell)], schema=schema)
        for arm in study.arms
    ]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _epochs(arm: ArmView, cell: CellView) -> list[dict[str, Any]]:
    who = {
        "arm": arm.name, **{f"factor.{name}": level for name, level in arm.levels.items()}, "seed": cell.seed,
        "cell_id": cell.cell_id, "state": cell.state,
    }  # fmt: skip
    rows = [{**row.metrics, **who, "epoch": row.epoch, "time": row.time_ms} for row in cell.rows]
    if rows:
        rows[-1] = {**cell.result, **rows[-1]}
    return rows


def as_csv(table: pa.Table) -> str:
    """With a line of names; empty where there is no value."""
    from pyarrow import csv

    out = io.BytesIO()
    csv.write_csv(table, out)
    return out.getvalue().decode()


def as_parquet(table: pa.Table, study: StudyView) -> bytes:
    """With the study's name, command and file as metadata under `simlap`."""
    from pyarrow import parquet

    about = {"study": study.name, "command": study.command, "file": study.text, "report_metric": study.report_metric}
    out = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({"simlap": json.dumps(about)}), out, compression="zstd")
    return out.getvalue()


def _compared(comparison: Comparison) -> dict[str, Any]:
    test = comparison.paired
    found: dict[str, Any] = {"reference": comparison.reference, "metric": comparison.metric, "epoch": comparison.epoch}
    if test is None:
        return found | {"verdict": comparison.blocked}
    return found | {
        "final": comparison.final, "n": test.n, "estimate": test.mean, "ci_low": test.low, "ci_high": test.high,
        "p_value": test.p_value, "p_adjusted": test.p_adjusted,
    }  # fmt: skip


def _interval(interval: tuple[float, float] | None) -> dict[str, Any]:
    return {} if interval is None else {"bca_low": interval[0], "bca_high": interval[1]}
