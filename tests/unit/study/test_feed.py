"""The feed of a race: further cells are asked for when all before have ended, and an attempt that is repeated is not over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial

import simlap.train.check  # noqa: F401 - torch is here: the checks need no process of their own
from simlap.config import yaml
from simlap.run.cluster import Node
from simlap.storage import Storage
from simlap.study.feed import CellFeed
from simlap.study.plan import make_plan
from simlap.study.planned import PlannedCell
from simlap.study.spec import load_study
from tests.tiny import TREE

STUDY = """
name: small
base: base.yaml
factors: {lr: {path: optim.lr, levels: [0.01, 0.02, 0.03]}}
baseline: {lr: 0.01}
seeds: 2
"""


class Feed(CellFeed):
    """Hands out ids instead of Tune's trials."""

    def _trial(self, trial_id: str, attempt: Any) -> Any:
        return trial_id


@pytest.fixture
def cells(tmp_path: Path) -> list[PlannedCell]:
    (tmp_path / "base.yaml").write_text(yaml.dump({**TREE, "evaluate": [{"kind": "probe"}]}))
    (tmp_path / "study.yaml").write_text(STUDY)
    return make_plan(load_study(tmp_path / "study.yaml"), Storage(tmp_path / "runs")).cells


def start(feed: Feed) -> str:
    trial_id: Any = feed.next_trial()
    assert trial_id is not None
    return str(trial_id)


def end(feed: Feed, trial_id: str) -> Any:
    """As Tune does, and the callback after it."""
    feed.on_trial_complete(trial_id)
    return feed.attempts.pop(trial_id)


def test_more_is_asked_for_when_all_before_have_ended(
    cells: list[PlannedCell], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter(range(100))
    monkeypatch.setattr(Trial, "generate_id", lambda: f"trial-{next(numbers)}")
    batches, asked = [cells[2:3], []], []

    def more() -> list[PlannedCell]:
        asked.append(len(feed.attempts))
        return batches.pop(0)

    feed = Feed(
        cells[:2], nodes=lambda: {"a": Node(2.0, 0.0)}, make_config=lambda attempt: {}, trainables=("a", "b"), head="h",
        more=more,
    )  # fmt: skip
    first, second = start(feed), start(feed)
    assert feed.next_trial() is None
    again = end(feed, first)
    assert feed.next_trial() is None, "one still runs"
    feed.again(again, larger=False)
    repeated = start(feed)
    end(feed, second)
    assert feed.next_trial() is None
    assert asked == []
    assert not feed.is_finished()
    end(feed, repeated)
    assert not feed.is_finished(), "there may be more"
    third = start(feed)
    assert asked == [0]
    assert feed.attempts[third].order > again.order, "in the order in which they came"
    end(feed, third)
    assert feed.next_trial() is None
    assert asked == [0, 0]
    assert feed.is_finished()
