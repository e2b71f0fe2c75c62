from __future__ import annotations

import json
from pathlib import Path

import pytest

from simlap.record.view import CellView, EpochRow
from simlap.report.collapse import write_collapse_page
from tests.unit.report.test_html import EVIL, Page, figures_in


def _run(scale: float) -> CellView:
    rows = [
        EpochRow(e, 0, {"collapse/effective_rank": scale * e, "collapse/alignment": 1 / e, "gate/mean": 0.5})
        for e in (1, 2, 3)
    ]
    return CellView("c", 4, "done", rows)


def test_curves_of_runs_side_by_side(tmp_path: Path) -> None:
    paths = write_collapse_page({"simlap": _run(2.0), EVIL: _run(1.0)}, tmp_path, "Collapse of two")
    assert paths == ["collapse.html", "collapse.json"]
    text = (tmp_path / "collapse.html").read_text()
    page = Page(text)
    assert not [t for t, _ in page.tags if t == "img"]
    assert "2 runs" in page.text
    figures = figures_in(text)
    assert set(figures) == {"small-0", "small-1", "small-2"}
    first = figures["small-0"]["data"]
    assert first[0]["y"] == [2.0, 4.0, 6.0]  # type: ignore[index]
    assert first[1]["y"] == [1.0, 2.0, 3.0]  # type: ignore[index]
    data = json.loads((tmp_path / "collapse.json").read_text())
    assert data["runs"]["simlap"]["collapse/alignment"] == [[1, 1.0], [2, 0.5], [3, pytest.approx(1 / 3)]]


def test_nothing_measured_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run has measured collapse"):
        write_collapse_page({"a": CellView("c", 0, "new")}, tmp_path, "T")
