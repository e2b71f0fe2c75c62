"""A study file becomes arms; what is wrong in it is said before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simlap.config import yaml
from simlap.errors import ConfigError
from simlap.study.spec import Study, load_study
from tests.tiny import TREE

STUDY = """
name: small
base: base.yaml
set: {train.epochs: 3}
factors:
  filter: {path: method.gate, levels: {on: {kind: sigmoid}, off: {kind: open}}}
  pairs: {path: method.pairs, levels: [arbitrary, identical]}
baseline: {filter: on, pairs: arbitrary}
seeds: 2
"""


def load(tmp_path: Path, text: str = STUDY, *overrides: str) -> Study:
    (tmp_path / "base.yaml").write_text(yaml.dump(TREE))
    (tmp_path / "study.yaml").write_text(text)
    return load_study(tmp_path / "study.yaml", overrides)


def test_factorial(tmp_path: Path) -> None:
    study = load(tmp_path)
    assert [arm.name for arm in study.arms] == [
        "filter=on pairs=arbitrary",
        "filter=on pairs=identical",
        "filter=off pairs=arbitrary",
        "filter=off pairs=identical",
    ]
    assert [arm.baseline for arm in study.arms] == [True, False, False, False]
    assert [arm.protected for arm in study.arms] == [True, False, False, False], "the baseline always runs to the end"
    assert [arm.experiment.method.gate.kind for arm in study.arms] == ["sigmoid", "sigmoid", "open", "open"]
    assert study.spec.seed_list() == [0, 1]


def test_exclude_and_protect_match_partially(tmp_path: Path) -> None:
    study = load(tmp_path, STUDY + "exclude: [{filter: off, pairs: identical}]\nprotect: [{pairs: identical}]\n")
    assert [(arm.name, arm.protected) for arm in study.arms] == [
        ("filter=on pairs=arbitrary", True),
        ("filter=on pairs=identical", True),
        ("filter=off pairs=arbitrary", False),
    ]


def test_numbers_are_levels_by_their_text(tmp_path: Path) -> None:
    text = STUDY.replace("levels: [arbitrary, identical]", "levels: [0.1, 0.5]").replace(
        "method.pairs", "method.temperature"
    )
    study = load(tmp_path, text.replace("pairs: arbitrary}", "pairs: 0.1}"))
    assert [arm.name for arm in study.arms if arm.baseline] == ["filter=on pairs=0.1"]
    assert {arm.experiment.method.temperature for arm in study.arms} == {0.1, 0.5}


def test_overrides_change_the_base(tmp_path: Path) -> None:
    assert {arm.experiment.optim.lr for arm in load(tmp_path, STUDY, "optim.lr=0.5").arms} == {0.5}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("path: method.gate", "path: method.gat", ["factors.filter.levels.on: method.gat", "did you mean 'gate'"]),
        ("{kind: open}", "{kind: opn}", ["method.gate.kind", "'opn'", "did you mean 'open'"]),
        ("[arbitrary, identical]", "[arbitrary, arbitrary]", ["factors.pairs.levels", "given twice"]),
        ("[arbitrary, identical]", "[]", ["factors.pairs.levels"]),
        ("filter: on, pairs", "filter: onn, pairs", ["baseline.filter", "'onn'", "on, off"]),
        ("{filter: on, pairs: arbitrary}", "{filter: on}", ["baseline", "one level of every factor", "pairs"]),
        ("{filter: on, pairs: arbitrary}", "{filte: on}", ["baseline", "no such factor", "did you mean 'filter'"]),
        ("seeds: 2", "seeds: [1, 1]", ["seeds", "distinct"]),
        ("seeds: 2", "seeds: two", ["seeds:", "'two'"]),
        ("seeds: 2", "seed: 2", ["seed: unknown key", "did you mean 'seeds'"]),
        (
            "seeds: 2",
            "exclude: [{filter: on, pairs: arbitrary}]",
            ["baseline is not among the arms", "filter=off pairs=identical"],
        ),
        (
            "seeds: 2",
            "metric: {name: test/probe_top1}",
            ["metric.name", "the test set never decides", "val/probe_top1"],
        ),
        ("seeds: 2", "metric: {name: val/knn}", ["metric.name", "did you mean 'val/knn_top1'"]),
        ("seeds: 2", "metric: {report: val/probe_top1}", ["metric.report", "test/probe_top1"]),
        ("seeds: 2", "scheduler: {kind: ahsa}", ["scheduler.kind", "did you mean 'asha'"]),
        ("seeds: 2", "resources: {workers: 0}", ["resources.workers", "greater than or equal to 1"]),
        ("train.epochs: 3", "train.epoch: 3", ["set: train.epoch", "did you mean 'epochs'"]),
        ("base.yaml", "bse.yaml", ["no such file", "base.yaml"]),
        ("name: small", "name: a/b", ["name", "'a/b'"]),
    ],
)
def test_wrong_study(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    assert old in STUDY
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, STUDY.replace(old, new))
    for word in words:
        assert word in str(raised.value)


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_arms_are_the_product_without_the_excluded(
    tmp_path_factory: pytest.TempPathFactory, first: int, second: int, data: st.DataObject
) -> None:
    temperatures = [round(0.1 * (i + 1), 1) for i in range(first)]
    widths = [8 * (i + 1) for i in range(second)]
    pairs = [(t, w) for t in temperatures for w in widths][1:]
    excluded = data.draw(st.lists(st.sampled_from(pairs), unique=True, max_size=4)) if pairs else []
    tree = {
        "name": "p",
        "base": "base.yaml",
        "factors": {
            "t": {"path": "method.temperature", "levels": temperatures},
            "w": {"path": "method.embed_dim", "levels": widths},
        },
        "baseline": {"t": temperatures[0], "w": widths[0]},
        "exclude": [{"t": t, "w": w} for t, w in excluded],
    }
    study = load(tmp_path_factory.mktemp("p"), yaml.dump(tree))
    seen = [(arm.experiment.method.temperature, arm.experiment.method.embed_dim) for arm in study.arms]
    assert seen == [pair for pair in [(t, w) for t in temperatures for w in widths] if pair not in excluded]
