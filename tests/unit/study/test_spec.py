"""A study file becomes arms; what is wrong in it is said before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def methods(study: Study) -> list[Any]:
    """The method section of every arm."""
    return [arm.experiment.method for arm in study.arms]


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
    assert [method.gate.kind for method in methods(study)] == ["sigmoid", "sigmoid", "open", "open"]
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
    assert {method.temperature for method in methods(study)} == {0.1, 0.5}


def test_overrides_change_the_base(tmp_path: Path) -> None:
    assert {arm.experiment.optim.lr for arm in load(tmp_path, STUDY, "optim.lr=0.5").arms} == {0.5}


NESTED = """
name: small
base: base.yaml
factors:
  pairs: {path: method.pairs, levels: [arbitrary, identical]}
  method: {path: method, levels: {simlap: {kind: simlap}, supcon: {kind: supcon, variant: khosla}}}
baseline: {pairs: arbitrary, method: simlap}
"""


def test_a_factor_inside_another_one_has_the_last_word(tmp_path: Path) -> None:
    """Whatever the order in which the file names them."""
    study = load(tmp_path, NESTED)
    assert [(method.kind, method.pairs) for method in methods(study)] == [
        ("simlap", "arbitrary"), ("supcon", "arbitrary"), ("simlap", "identical"), ("supcon", "identical"),
    ]  # fmt: skip
    assert [method.variant for method in methods(study) if method.kind == "supcon"] == ["khosla", "khosla"]


def test_an_inner_level_may_need_its_outer_one(tmp_path: Path) -> None:
    text = NESTED.replace(
        "method.pairs, levels: [arbitrary, identical]", "method.variant, levels: [khosla, one_to_one]"
    )
    text = text.replace("pairs: arbitrary", "pairs: khosla") + "exclude: [{method: simlap, pairs: one_to_one}]\n"
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, text)
    assert "factors.pairs.levels.khosla: method.variant: unknown key" in str(raised.value), "of simlap"


def names(tmp_path: Path, more: str) -> list[str]:
    text = STUDY.replace("levels: [arbitrary, identical]", "levels: [arbitrary, identical, distinct]")
    return [arm.name.replace("filter=", "").replace("pairs=", "") for arm in load(tmp_path, text + more).arms]


def test_designs(tmp_path: Path) -> None:
    assert names(tmp_path, "design: one_at_a_time\n") == [
        "on arbitrary", "off arbitrary", "on identical", "on distinct",
    ]  # fmt: skip
    listed = "design: list\narms: [{pairs: identical, filter: off}, {filter: on}, {pairs: distinct}]\n"
    assert names(tmp_path, listed) == ["off identical", "on arbitrary", "on distinct"]
    assert [arm.name for arm in load(tmp_path, STUDY + "design: leave_one_out\n").arms] == [
        "filter=on pairs=arbitrary", "filter=off pairs=identical", "filter=on pairs=identical", "filter=off pairs=arbitrary",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("design: list\n", ["arms: is required with design: list"]),
        ("arms: [{filter: on}]\n", ["arms: is for design: list only"]),
        ("design: list\narms: [{filter: off}]\n", ["the baseline is not among the arms"]),
        ("design: list\narms: [{filter: on}, {}]\n", ["arms.1: is the same as arms.0"]),
        ("design: list\narms: [{filter: onn}]\n", ["arms.0.filter: no such level", "did you mean 'on'"]),
        ("design: leave_one_out\n", ["design: leave_one_out needs two levels", "pairs has 3"]),
        ("design: all\n", ["design", "'all'", "one_at_a_time"]),
    ],
)
def test_wrong_design(tmp_path: Path, more: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        names(tmp_path, more)
    for word in words:
        assert word in str(raised.value)


def test_accuracies_on_other_data_are_metrics(tmp_path: Path) -> None:
    few = "{source: digits, classes: [1, 2, 3]}"
    transfer = f"set: {{evaluate: [{{kind: probe}}, {{kind: transfer, data: {{few: {few}}}}}, {{kind: finetune}}]}}"
    text = STUDY.replace("set: {train.epochs: 3}", transfer)
    for report in ("test/few_linear_top1", "test/finetune_top1"):
        assert (
            load(tmp_path, text + f"metric: {{name: val/few_knn_top1, report: {report}}}\n").spec.metric.report
            == report
        )
    with pytest.raises(ConfigError, match=r"metric\.report.*did you mean 'test/few_linear_top1'"):
        load(tmp_path, text + "metric: {report: test/few_linaer_top1}\n")


def test_resources_are_those_of_all_stages(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text(yaml.dump({**TREE, "name": "first"}))
    text = STUDY.replace("set: {train.epochs: 3}", "set: {pretrain: first.yaml}")
    (arm, *_) = load(tmp_path, text).arms
    assert [stage.name for stage in arm.experiment.stages] == ["first", "tiny"]
    (arm, *_) = load(tmp_path, text + "resources: {workers: 2}\n").arms
    assert [stage.resources.workers for stage in arm.experiment.stages] == [2, 2]


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
    seen = [(method.temperature, method.embed_dim) for method in methods(study)]
    assert seen == [pair for pair in [(t, w) for t in temperatures for w in widths] if pair not in excluded]
