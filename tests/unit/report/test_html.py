"""The page: complete in itself, escaped, and with the parts it should have."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from simlap.report import render, write_report
from simlap.report.build import build
from simlap.report.figures import arm_styles, curves, effects_figure, forest
from simlap.storage import Storage
from tests.unit.report import factory

VOID = {"meta", "link", "line", "path", "wbr", "br", "img"}
PLOTS = {"forest", "curves", "effects", "interaction-0", "cost", "small-0", "small-1", "small-2"}
EVIL = '</script ><img src=x onerror="alert(1)">&'


class Page(HTMLParser):
    """Checks that tags are balanced; collects them with their attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.stack):
            self.text += data


def figures_in(text: str) -> dict[str, dict[str, object]]:
    figures: dict[str, dict[str, object]] = json.loads(unpacked(text, "figures"))
    return figures


def unpacked(text: str, name: str) -> str:
    """What is compressed in the page."""
    found = re.search(rf'<script type="application/gzip" id="{name}">([A-Za-z0-9+/=]*)</script>', text)
    assert found
    return gzip.decompress(base64.b64decode(found[1])).decode()


def test_page_is_complete_and_asks_for_nothing_from_outside() -> None:
    text = render(factory.mixed(), "html")
    page = Page(text)
    sources = [a.get("src") or a.get("href") for t, a in page.tags if t in ("script", "link", "img", "iframe")]
    assert all(s is None or s.startswith("data:") for s in sources)
    assert unpacked(text, "plotly").count("plotly.js v") == 1
    assert len(text.encode()) < 3_000_000
    assert "@import" not in text.split("</style>")[0]
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == [
        "The answer", "Before you rely on it", "Arms", "Difference to the baseline", "Beside the t test", "Learning curves",
        "Effect of each factor", "Main effects and interactions", "Combinations of levels", "Cost against accuracy",
        "Stopped arms, and why", "Collapse", "Gates", "Failures", "How to reproduce",
    ]  # fmt: skip
    ids = {a["id"] for t, a in page.tags if t == "div" and "id" in a}
    assert ids == set(figures_in(text)) == PLOTS
    boxes = [a for t, a in page.tags if t == "div" and a.get("class") == "plot"]
    assert len(boxes) == len(PLOTS)
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 30 for a in boxes)  # what a plot shows, in words
    for part in ("stopped at 5–8", "val @ epoch 5", "simlap ablate ablations/filter.yaml", "digits-1f2e3d", "0123abc"):
        assert part in page.text


def test_everything_is_escaped() -> None:
    view = factory.mixed()
    arms = [
        replace(
            a,
            name=a.name.replace("distinct", EVIL),
            levels={k: v.replace("distinct", EVIL) for k, v in a.levels.items()},
            cells=[replace(c, cell_id=EVIL, error=EVIL if c.error else None, seed=c.seed) for c in a.cells],
        )
        for a in view.arms
    ]
    view = replace(
        view, name=EVIL, arms=arms, command=EVIL, text=EVIL, claims=[EVIL], scheduler=EVIL, provenance={EVIL: EVIL},
        factors={k: [v.replace("distinct", EVIL) for v in vs] for k, vs in view.factors.items()},
    )  # fmt: skip
    text = render(view, "html")
    page = Page(text)
    assert not [t for t, _ in page.tags if t == "img"]
    assert page.text.count(EVIL) >= 10
    assert set(figures_in(text)) == PLOTS  # letters and digits only: nothing there can end the script
    names = [trace["name"] for trace in figures_in(text)["forest"]["data"]]  # type: ignore[attr-defined]
    assert not any("<img" in name for name in names)  # plotly reads tags in labels, too


def test_a_study_that_has_not_started_has_a_page() -> None:
    view = factory.study()
    for arm in view.arms:
        view = factory.stop(view, arm.name, dict.fromkeys(factory.SEEDS, 0), "new")
    text = render(view, "html")
    page = Page(text)
    assert 'id="plotly"' not in text  # nothing to draw
    assert page.text.count("not started") >= 6


def test_write_report(tmp_path: Path) -> None:
    storage = Storage(tmp_path).child("studies", "filter")
    paths = write_report(factory.mixed(), storage)
    names = [
        "epochs.parquet",
        *(f"report.{ending}" for ending in ("csv", "html", "md", "parquet", "tex")),
        "summary.json",
    ]
    assert sorted(paths) == [f"report/{name}" for name in names]
    assert storage.list("report") == names
    assert storage.read_json("report/summary.json")["schema_version"] == 1
    first = storage.read("report/report.html")
    write_report(factory.mixed(), storage)
    assert storage.read("report/report.html") == first


def test_curves_average_only_where_all_planned_seeds_were() -> None:
    view = factory.mixed()
    figure = curves(view)
    assert figure is not None
    last = {t.name: max(t.x) for t in figure.data if t.name}
    assert last["filter=off,pairs=distinct"] == 5
    assert last["filter=off,pairs=arbitrary"] == 9
    assert last["filter=on,pairs=arbitrary"] == 15
    crosses = sorted(t.x[0] for t in figure.data if t.meta == "filter=off,pairs=distinct" and t.marker.symbol == "x")
    assert crosses == [5, 5, 5, 8, 8]
    mean = next(t for t in figure.data if t.name == "filter=off,pairs=distinct")
    cells = next(a for a in view.arms if a.name == "filter=off,pairs=distinct").cells
    assert mean.y[4] == pytest.approx(100 * sum(c.rows[4].metrics["val/probe_top1"] for c in cells) / 5)
    assert curves(view, "gate/unknown") is None


def test_forest_and_effects_show_the_intervals() -> None:
    report = build(factory.mixed())
    figure = forest(report.study, report.comparisons)
    assert len(figure.data) == 5
    trace = next(t for t in figure.data if t.meta == "filter=off,pairs=distinct")
    test = report.comparisons["filter=off,pairs=distinct"].paired
    assert test is not None
    assert test.half_width is not None
    assert trace.x[0] == pytest.approx(100 * test.mean)
    assert trace.error_x.array[0] == pytest.approx(100 * test.half_width)
    assert trace.marker.symbol.endswith("-open")  # compared early
    assert len(effects_figure(report.study, report.effects).data) == 7


@pytest.mark.parametrize("factors", [1, 2, 3])
def test_arms_look_different(factors: int) -> None:
    """Up to twelve arms, in one, two or three factors: no two look the same, on lines or as symbols."""
    levels = {1: [12], 2: [6, 2], 3: [3, 2, 2]}[factors]
    names = {f"f{i}": [f"l{j}" for j in range(n)] for i, n in enumerate(levels)}
    combinations: list[dict[str, str]] = [{}]
    for factor, values in names.items():
        combinations = [{**c, factor: v} for c in combinations for v in values]
    base = factory.study()
    arms = [
        replace(base.arms[0], name=",".join(c.values()), levels=c, is_baseline=i == 0)
        for i, c in enumerate(combinations)
    ]
    styles = arm_styles(replace(base, factors=names, arms=arms))
    assert len(arms) == 12
    assert len({(s.colour, s.dash) for s in styles.values()}) == 12
    assert len({(s.colour, s.symbol) for s in styles.values()}) == 12
