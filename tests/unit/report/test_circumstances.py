"""Where results came from: one value where all runs agree, all of them with counts where they do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from simlap.record.view import StudyView
from simlap.report import render
from simlap.report.circumstances import facts_of, mixed_text
from tests.unit.report import factory
from tests.unit.report.test_html import Page


def _made(arms: dict[int, dict[str, Any]], **changes: Any) -> StudyView:
    """Every run with the same provenance, but for arms by number."""
    view = factory.study()
    shared = {
        "git": {"commit": "aaa111", "dirty": False}, "packages": {"torch": "2.15.0"}, "data_fingerprint": "d1", "cpus": 2,
        "command": "simlap ablate x.yaml", "device": "cpu",
    }  # fmt: skip
    found = [
        replace(arm, cells=[replace(c, provenance={**shared, **arms.get(i, {})}) for c in arm.cells])
        for i, arm in enumerate(view.arms)
    ]
    return replace(view, arms=found, provenance=shared, **changes)


def test_one_value_where_all_agree() -> None:
    view = _made({})
    facts = {fact.key: fact for fact in facts_of(view)}
    assert facts["git.commit"].values == {"aaa111": 30}
    assert facts["git.dirty"].values == {"as committed": 30}
    assert "command" not in facts
    assert mixed_text(list(facts.values()), view) == []
    page = Page(render(replace(view, command="simlap ablate x.yaml --storage s3://here"), "html")).text
    for part in ("git checkout aaa111", "simlap verify filter --storage s3://here", "data fingerprint", "2.15.0"):
        assert part in page
    assert "not all made under the same circumstances" not in page


def test_what_differs_is_flagged_with_counts() -> None:
    other = {"git": {"commit": "bbb222", "dirty": True}, "packages": {"torch": "2.14.0"}, "cpus": 64}
    view = _made({5: other})
    lines = mixed_text(facts_of(view), view)
    assert lines == [
        "git commit: aaa111 (25 runs), bbb222 (5 runs)",
        "working tree: as committed (25 runs), with changes that are in no commit (5 runs)",
        "torch: 2.15.0 (25 runs), 2.14.0 (5 runs)",
    ]
    page = Page(render(view, "html")).text
    assert "not all made under the same circumstances" in page
    assert "The code had changes that are in no commit" in page


def test_data_that_the_study_varies_are_no_surprise() -> None:
    varied = _made({i: {"data_fingerprint": f"d{i}"} for i in (1, 2)})
    assert mixed_text(facts_of(varied), varied) == []
    changed = _made({})
    first = changed.arms[0]
    cells = [
        replace(first.cells[0], provenance={**first.cells[0].provenance, "data_fingerprint": "new"}),
        *first.cells[1:],
    ]
    changed = replace(changed, arms=[replace(first, cells=cells), *changed.arms[1:]])
    assert mixed_text(facts_of(changed), changed) == ["data fingerprint: d1 (29 runs), new (1 run)"]


def test_without_runs_the_launch_s_own_facts_stand() -> None:
    facts = {fact.key: fact.values for fact in facts_of(factory.study())}
    assert facts["git.commit"] == {"0123abc": 0}
    assert facts["data.fingerprint"] == {"digits-1f2e3d": 0}
