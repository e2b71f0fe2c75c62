"""The figure of the features' spectrum: means over seeds, at the first and the last epoch that all seeds have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simlap.record.view import StudyView
from simlap.report import build
from simlap.report.html import figures_of, html_page
from simlap.report.spectrum import spectra
from tests.unit.report import factory
from tests.unit.report.test_html import Page


def measured(view: StudyView, every: int = 5) -> StudyView:
    """Rank 1 has more of the variance from epoch to epoch, and a little more in each seed; rank 4 has none."""

    def shares(epoch: int, seed: int) -> dict[str, float]:
        first = 0.5 + 0.01 * epoch + 0.001 * seed
        values = {"0001": first, "0002": (1 - first) / 2, "0004": 0.0}
        return {f"collapse/spectrum_{rank}": value for rank, value in values.items()} if epoch % every == 0 else {}

    def cell(one: Any) -> Any:
        return replace(one, rows=[replace(r, metrics=r.metrics | shares(r.epoch, one.seed)) for r in one.rows])

    return replace(view, arms=[replace(arm, cells=[cell(one) for one in arm.cells]) for arm in view.arms])


def test_means_at_the_first_and_the_last_common_epoch() -> None:
    view = factory.study()
    arm = view.arms[1].name
    figure = spectra(measured(factory.stop(view, arm, {2: 11})))
    assert figure is not None
    found = {(trace.meta, trace.line.width): dict(zip(trace.x, trace.y, strict=True)) for trace in figure.data}
    for name, last in ((view.arms[0].name, 15), (arm, 10)):
        for width, epoch in ((1, 5), (2.5, last)):
            first = 50 + epoch + 0.2  # seeds 0 to 4
            assert found[name, width] == pytest.approx({1: first, 2: (100 - first) / 2}), (
                "what has no variance has no place"
            )


def test_it_stands_on_the_page_with_its_numbers() -> None:
    report = build(measured(factory.study()))
    assert "spectrum" in figures_of(report)
    page = Page(html_page(report))
    assert f"{report.study.arms[0].name}, epoch 15" in page.text
    assert "Spectrum" in page.text


def test_there_is_none_where_it_was_not_measured() -> None:
    assert spectra(factory.study()) is None
    assert "spectrum" not in figures_of(build(factory.study()))
