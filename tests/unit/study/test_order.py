"""The same decisions and numbers, in whatever order cells end, with one or four at a time, and however arms are written."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import simlap.train.check  # noqa: F401 - torch is here: the checks need no process of their own
from simlap.record.journal import read_study
from simlap.report import build, summary_of
from tests.unit.study.runner import STUDY, Runner

LEVELS = ["0.01", "0.02", "0.03", "0.04", "0.05"]
NONE = STUDY[: STUDY.index("scheduler:")].replace("seeds: 8", "seeds: 3")
BEST = STUDY.replace("kind: race,", "kind: race, against: best,")


def shuffled(text: str, seed: int) -> str:
    levels = random.Random(seed).sample(LEVELS, len(LEVELS))
    return text.replace(f"[{', '.join(LEVELS)}]", f"[{', '.join(levels)}]")


def told(runner: Runner) -> dict[str, Any]:
    """Everything that is decided and shown, in an order of its own."""
    view = read_study(runner.storage, "small")
    summary = summary_of(build(view))
    del summary["markdown"]  # lays the arms out in the file's order
    # all pairs are listed in the file's order as well, the earlier arm minus the later one
    pairs = summary.get("details", {}).pop("pairs", [])  # a race has none
    unordered = {
        tuple(sorted((pair["arm"], pair["reference"]))): (
            abs(pair["difference"]), sorted((abs(pair["ci_low"]), abs(pair["ci_high"]))), pair["p_value"],
        )
        for pair in pairs
    }  # fmt: skip
    assert len(unordered) == len(pairs)
    sentences = sorted(sentence.text for sentence in build(view).sentences)
    plain: dict[str, Any] = json.loads(json.dumps(summary, sort_keys=True))
    return {"summary": plain, "pairs": unordered, "sentences": sentences, "states": runner.states()}


@pytest.mark.parametrize("text", [NONE, STUDY, BEST], ids=["none", "race", "best"])
def test_neither_order_nor_concurrency_changes_anything(tmp_path: Path, text: str) -> None:
    straight = Runner(tmp_path / "straight", text)
    assert straight.launch(slots=1)
    expected = told(straight)
    for seed, slots in enumerate([1, 4]):
        other = Runner(tmp_path / str(seed), shuffled(text, seed))
        assert other.launch(mix=seed, slots=slots)
        assert told(other) == expected
        assert other.decisions() == straight.decisions()
        assert sorted(map(str, other.ran)) == sorted(map(str, straight.ran))
