"""The study's page in a real browser: nothing to complain about, the answer in the first screen, for keyboards and paper too."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from simlap.record.view import ArmView, StudyView
from simlap.report import render
from tests.integration.browser import Tab, browser, find_browser
from tests.unit.report import factory
from tests.unit.report.test_race import raced

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome on this machine"),
]
DESKTOP, PHONE, PAPER = (1280, 800), (390, 844), (703, 1020)
MAX_BYTES = 5_000_000
DRAWN = "document.documentElement.dataset.plots === 'drawn' || !document.getElementById('figures')"
_AXE = "axe.run(document, {resultTypes: ['violations']}).then(found => found.violations.map(v => ({id: v.id, impact: v.impact," \
    " where: v.nodes.slice(0, 5).map(n => n.html.slice(0, 300) + ' ' + (n.failureSummary || ''))})))"  # fmt: skip
_BOX = """(() => { const found = document.querySelector('#answer .answer li, #answer .none').getBoundingClientRect();
return {top: found.top, bottom: found.bottom, title: document.querySelector('h1').getBoundingClientRect().top,
whole: Array.from(document.querySelectorAll('#answer li .chip'), chip => chip.closest('li').getBoundingClientRect())
.filter(box => box.bottom <= innerHeight).length,
scroll: document.documentElement.scrollWidth, inner: document.documentElement.clientWidth} })()"""


def many(strengths: int = 10, temperatures: int = 6) -> StudyView:
    """Two factors, more arms than are drawn, with long names; two seeds each."""
    factors = {
        "augmentation_strength": [f"{i / 10:.1f}" for i in range(strengths)],
        "temperature": [f"{0.05 * (i + 1):.2f}" for i in range(temperatures)],
    }
    arms = []
    for i, (a, b) in enumerate(itertools.product(*factors.values())):
        name = f"augmentation_strength={a} temperature={b}"
        cells = [factory.cell(name, seed, 0.8 + 0.1 * float(b) - 0.05 * float(a), 12) for seed in (0, 1)]
        arms.append(
            ArmView(name, {"augmentation_strength": a, "temperature": b}, i == 0, i == 0, cells)
        )  # fmt: skip
    return factory.study(name="many", factors=factors, arms=arms, seeds=[0, 1], epochs=12, claims=[])


def one_arm() -> StudyView:
    view = factory.study(name="a" * 80, claims=[], seeds=[0])
    arm = replace(view.arms[0], name="x" * 120, cells=view.arms[0].cells[:1])
    return replace(view, factors={}, arms=[arm])


def unstarted() -> StudyView:
    view = factory.study(claims=[])
    for arm in view.arms:
        view = factory.stop(view, arm.name, dict.fromkeys(factory.SEEDS, 0), "new")
    return view


PAGES = {"mixed": factory.mixed, "many": many, "race": raced, "one arm": one_arm, "unstarted": unstarted}


@dataclass
class Seen:
    """What came of one page."""

    size: int
    boxes: dict[tuple[int, int], dict[str, float]] = field(default_factory=dict)
    violations: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    deeds: dict[str, Any] = field(default_factory=dict)
    """What came of pressing its buttons."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """Every page, looked at once."""
    folder = tmp_path_factory.mktemp("pages")
    for name, view in PAGES.items():
        (folder / f"{name.replace(' ', '-')}.html").write_text(render(view(), "html"), encoding="utf-8")
    return asyncio.run(_look_at_all(folder))


async def _look_at_all(folder: Path) -> dict[str, Seen]:
    axe = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    found = {}
    async with browser(folder / "profile") as tab:
        for name in PAGES:
            path = folder / f"{name.replace(' ', '-')}.html"
            tab.errors.clear()
            here = found[name] = Seen(path.stat().st_size)
            await tab.look(width=PHONE[0], height=PHONE[1])
            await tab.open(path.as_uri(), DRAWN)
            here.boxes[PHONE] = await tab.evaluate(_BOX)
            await tab.evaluate(axe)
            here.violations["phone, light"] = await tab.evaluate(_AXE)
            await tab.look(width=DESKTOP[0], height=DESKTOP[1])
            here.boxes[DESKTOP] = await tab.evaluate(_BOX)
            if name == "mixed":  # it has every part
                here.deeds = await _press(tab)
                await tab.look(width=DESKTOP[0], height=DESKTOP[1], dark=True)
                here.violations["desktop, dark"] = await tab.evaluate(_AXE)
            await tab.look(width=PAPER[0], height=PAPER[1], dark=True, media="print")
            await tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
            here.boxes[PAPER] = await tab.evaluate(_BOX)
            here.deeds["paper"] = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
            here.errors = list(tab.errors)
        found["mixed"].deeds["old browser"] = await _open_without(tab, folder / "mixed.html")
    return found


async def _open_without(tab: Tab, path: Path) -> list[Any]:
    """The page where plots cannot be inflated: what stands in their places, and whether anything is reported as broken."""
    tab.errors.clear()
    await tab.look(width=DESKTOP[0], height=DESKTOP[1])
    await tab.send("Page.addScriptToEvaluateOnNewDocument", source="delete globalThis.DecompressionStream")
    await tab.open(path.as_uri())
    told = "Array.from(document.querySelectorAll('.plot p'), p => p.offsetHeight > 0 && p.innerText)"
    return [*tab.errors, *set(await tab.evaluate(told))]


_ORDER = "Array.from(document.querySelectorAll('table[data-sortable] tbody tr'), row => row.cells[0].dataset.value)"
_SORTS = (
    "Array.from(document.querySelectorAll('table[data-sortable] thead th'), head => head.getAttribute('aria-sort'))"
)


async def _press(tab: Tab) -> dict[str, Any]:
    """The table by keyboard and by the list of the phone; the axis; the key."""
    found: dict[str, Any] = {"study order": await tab.evaluate(_ORDER)}
    await tab.evaluate("document.querySelectorAll('table[data-sortable] thead button')[4].focus()")
    for _ in range(3):
        for kind in ("keyDown", "keyUp"):
            await tab.send(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
            )
        found.setdefault("by key", []).append([await tab.evaluate(_ORDER), (await tab.evaluate(_SORTS))[4]])
    choose = "(() => {const s = document.querySelector('.sort select'); s.value = '%s'; s.dispatchEvent(new Event('change'))})()"
    await tab.evaluate(choose % "0 descending")
    found["by list"] = await tab.evaluate(_ORDER)
    await tab.evaluate(choose % "")
    found["back"] = await tab.evaluate(_ORDER)
    axis = "document.getElementById('curves')._fullLayout.yaxis.type"
    button = "document.querySelector('.switch button[data-axis=yaxis][data-type=log]')"
    found["axis"] = [await tab.evaluate(axis)]
    await tab.evaluate(f"{button}.click()")
    found["axis"] += [await tab.evaluate(axis), await tab.evaluate(f"{button}.getAttribute('aria-pressed')")]
    lines = "document.querySelectorAll('#curves .scatterlayer .trace').length"
    found["lines"] = [await tab.evaluate(lines)]
    await tab.evaluate("document.querySelector('.keys button').click()")
    found["lines"].append(await tab.evaluate(lines))
    return found


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wrong_with_a_page(seen: dict[str, Seen], name: str) -> None:
    here = seen[name]
    assert here.errors == []
    assert here.size <= MAX_BYTES
    bad = {
        look: [v for v in found if v["impact"] in ("serious", "critical")] for look, found in here.violations.items()
    }
    assert not any(bad.values()), bad
    for (width, _), box in here.boxes.items():
        assert box["scroll"] <= box["inner"], f"scrolls sideways at {width}: {box}"
    assert here.deeds["paper"] == "rgb(255, 255, 255)"  # though the screen is dark


def test_hundreds_of_arms_weigh_no_more() -> None:
    assert len(render(many(24, 14), "html").encode()) <= MAX_BYTES


@pytest.mark.parametrize("name", PAGES)
def test_the_answer_begins_in_the_first_screen(seen: dict[str, Seen], name: str) -> None:
    """Name and first sentence on a phone and on a desktop; of a study of the demo's size and a claim, most sentences."""
    for size in (DESKTOP, PHONE):
        box = seen[name].boxes[size]
        assert 0 <= box["title"] < box["top"] < box["bottom"] <= size[1], box
    if name == "mixed":
        assert seen[name].boxes[DESKTOP]["whole"] >= 7  # of 8
        assert seen[name].boxes[PHONE]["whole"] >= 5


def test_the_table_is_sorted_by_keyboard_and_by_the_phone_s_list(seen: dict[str, Seen]) -> None:
    """By the difference: numbers as numbers, the baseline, which has none, last; a third press goes back."""
    deeds = seen["mixed"].deeds
    order = deeds["study order"]
    assert order == [arm.name for arm in factory.mixed().arms]
    up, down, back = deeds["by key"]
    assert [up[1], down[1], back[1]] == ["ascending", "descending", "none"]
    assert up[0][-1] == down[0][-1] == "filter=on,pairs=arbitrary"
    assert up[0][:-1] == down[0][-2::-1]
    assert sorted(up[0]) == sorted(order)
    assert up[0][0].startswith("filter=off")
    assert back[0] == order == deeds["back"]
    assert deeds["by list"] == sorted(order, reverse=True)


def test_where_plots_cannot_be_drawn_it_is_said(seen: dict[str, Seen]) -> None:
    (told,) = seen["mixed"].deeds["old browser"]
    assert told.startswith("This plot needs scripts, and a browser of 2023 or newer.")


def test_axes_and_keys_are_switches(seen: dict[str, Seen]) -> None:
    deeds = seen["mixed"].deeds
    assert deeds["axis"] == ["linear", "log", "true"]
    assert deeds["lines"][1] < deeds["lines"][0]
