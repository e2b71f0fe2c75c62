"""Figures as files: what stands in them, and how the Markdown links them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from simlap.errors import UserError
from simlap.report import render
from simlap.report.build import build, write_report
from simlap.report.figure_files import WIDTH, FigureFile, for_paper, store_figures, with_figures, write_figures
from simlap.report.html import figures_of
from simlap.storage import Storage
from tests.integration.browser import find_browser
from tests.unit.report import factory


def test_on_paper_a_figure_has_a_title_a_legend_and_a_white_ground() -> None:
    plots = figures_of(build(factory.mixed()))
    assert list(plots) == ["forest", "curves", "effects", "interaction-0", "cost", "small-0", "small-1", "small-2"]
    before = plots["curves"].to_json()
    made = {name: for_paper(figure) for name, figure in plots.items()}
    assert plots["curves"].to_json() == before  # the page's own is left as it is
    assert {figure.layout.paper_bgcolor for figure in made.values()} == {"#ffffff"}
    assert {figure.layout.width for figure in made.values()} == {WIDTH}
    assert "Difference to the baseline" in made["forest"].layout.title.text
    legends = {name for name, figure in made.items() if figure.layout.showlegend}
    assert legends == {"curves", "cost", "small-0", "small-1", "small-2"}
    assert made["curves"].layout.height > plots["curves"].layout.height + 40
    said = plots["forest"].layout.meta["text"]
    assert "filter=off,pairs=distinct -9.5 [-10.1, -8.8]" in said


def test_links_stand_before_how_to_reproduce(tmp_path: Path) -> None:
    text = render(factory.mixed(), "md")
    one = FigureFile("forest", "Difference [*]", "a | b_c", tmp_path / "my figures" / "forest.png")
    found = with_figures(text, [one], tmp_path)
    assert "### Difference \\[\\*\\]\n\n![a \\| b\\_c](my%20figures/forest.png)\n\n## How to reproduce" in found
    assert found.replace(found[found.index("## Figures") : found.index("## How to reproduce")], "") == text
    assert with_figures(text, [], tmp_path) == text
    assert with_figures("# T\n", [one], tmp_path).endswith("forest.png)\n")


def test_without_kaleido_there_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(UserError, match=r"--figures: images are drawn by kaleido, .* install simlap\[figures\]"):
        write_figures({}, tmp_path / "figures", "png")
    assert not (tmp_path / "figures").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        write_figures({}, tmp_path / "figures", "png")


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome on this machine")
def test_images_are_drawn(tmp_path: Path) -> None:
    plots = figures_of(build(factory.mixed()))
    chosen = {name: plots[name] for name in ("forest", "small-0")}
    found = write_figures(chosen, tmp_path, "svg")
    assert [one.path.name for one in found] == ["forest.svg", "collapse-effective-rank.svg"]
    text = found[0].path.read_text()
    assert text.startswith("<svg")
    assert 'width="800"' in text
    assert "difference in percentage points" in text


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome on this machine")
def test_images_in_the_studys_folder_are_those_of_its_report(tmp_path: Path) -> None:
    storage, view = Storage(tmp_path), factory.mixed()
    storage.write("report/figures/old.png", b"of an earlier report")
    write_report(view, storage)
    assert storage.list("report/figures") == []
    storage.write("report/figures/old.png", b"of an earlier study")
    paths = store_figures({"forest": figures_of(build(view))["forest"]}, storage, "report/figures", "png")
    assert paths == ["report/figures/forest.png"]
    assert storage.list("report/figures") == ["forest.png"]
    assert storage.read(paths[0]).startswith(b"\x89PNG")


@pytest.mark.slow
def test_without_a_browser_there_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    plots = figures_of(build(factory.mixed()))
    with pytest.raises(UserError, match="drawn by Chrome or Chromium, which was not found"):
        write_figures({"forest": plots["forest"]}, tmp_path, "svg")
