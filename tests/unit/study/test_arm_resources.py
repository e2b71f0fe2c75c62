"""Arms of one study that run on different devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from simlap.config import yaml
from simlap.config.schema import Resources
from simlap.errors import ConfigError
from simlap.run.cluster import Node
from simlap.storage import Storage
from simlap.study.capacity import Share
from simlap.study.estimate import device_hours
from simlap.study.placement import check_resources, this_machine
from simlap.study.plan import Plan, make_plan
from simlap.study.spec import Study, load_study
from simlap.study.trainable import trial_config
from tests.tiny import TREE
from tests.unit.study.pretend import EPOCH_S, pretend
from tests.unit.study.test_capacity import feed, started

FACTORS: dict[str, Any] = {
    "filter": {"path": "method.gate.kind", "levels": ["gumbel", "open"]},
    "device": {"path": "resources", "levels": {"one": {}, "two": {"workers": 2, "cpus_per_worker": 3}}},
}
TREES: dict[str, Any] = {
    "zip": {"zip": [["filter", "device"]]},
    "list": {"design": "list", "arms": [{}, {"filter": "open", "device": "two"}]},
}


def load(folder: Path, base: dict[str, Any] | None = None, **keys: Any) -> Study:
    tree = {
        "name": "small", "base": "base.yaml", "factors": FACTORS, "baseline": {"filter": "gumbel", "device": "one"}, "seeds": 1,
        **keys,
    }  # fmt: skip
    (folder / "base.yaml").write_text(yaml.dump({**TREE, **(base or {})}))
    (folder / "study.yaml").write_text(yaml.dump(tree))
    return load_study(folder / "study.yaml")


def plan(folder: Path, **keys: Any) -> Plan:
    return make_plan(load(folder, **keys), Storage(folder / "runs"))


def workers(study: Study) -> list[int]:
    return [arm.experiment.resources.workers for arm in study.arms]


@pytest.mark.parametrize("keys", TREES.values(), ids=TREES)
def test_each_arm_has_its_own(tmp_path: Path, keys: dict[str, Any]) -> None:
    made = plan(tmp_path, **keys)
    assert workers(made.study) == [1, 2]
    (cell,) = made.of_arm(made.study.arms[1])
    assert Share.of(cell.experiment.resources) == Share(2, 3, 0.0)
    told = trial_config(made, cell, {}, cell.experiment.resources, 2)
    assert told["task"]["experiment"]["resources"]["cpus_per_worker"] == 3


@pytest.mark.parametrize("keys", TREES.values(), ids=TREES)
def test_the_factor_has_the_last_word(tmp_path: Path, keys: dict[str, Any]) -> None:
    given = {"device": {**FACTORS["device"], "path": "resources.workers", "levels": {"one": 1, "two": 2}}}
    study = load(tmp_path, **keys, factors={**FACTORS, **given}, resources={"workers": 4, "cpus_per_worker": 5})
    assert [arm.experiment.resources for arm in study.arms] == [
        Resources(workers=1, cpus_per_worker=5), Resources(workers=2, cpus_per_worker=5),
    ]  # fmt: skip


def test_of_an_earlier_stage(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text(yaml.dump(TREE))
    changes = {"device": {"path": "pretrain.resources.workers", "levels": {"one": 1, "two": 2}}}
    for resources, last in ((None, 1), ({"workers": 3}, 3)):
        study = load(
            tmp_path, {"pretrain": "first.yaml"}, zip=[["filter", "device"]], factors={**FACTORS, **changes},
            resources=resources,
        )  # fmt: skip
        assert [[s.resources.workers for s in arm.experiment.stages] for arm in study.arms] == [[1, last], [2, last]]


def test_by_themselves_they_make_no_other_experiment(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"arm filter=gumbel device=two: is the same experiment as arm"):
        plan(tmp_path)


NODES: list[tuple[str, dict[str, Any], Sequence[Node], str]] = [
    ("arm", {}, [Node(4, 0)], "arm filter=open device=two: resources.workers: 2 workers of 3 CPUs"),
    ("base", {"base": {"resources": {"workers": 9}}, "baseline": {"filter": "gumbel", "device": "nine"},
              "factors": {**FACTORS, "device": {"path": "resources", "levels": {"nine": {"workers": 9}, "two": {"workers": 2}}}}},
     [Node(8, 0)], "base: resources.workers: 9 workers"),
    ("study", {"resources": {"cpus_per_worker": 9}, "factors": {**FACTORS, "device": {
        "path": "resources.workers", "levels": [1, 2]}}, "baseline": {"filter": "gumbel", "device": "1"}},
     [Node(8, 0)], "resources.workers: 1 workers of 9 CPUs"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "nodes", "said"), [case[1:] for case in NODES], ids=[case[0] for case in NODES])
def test_what_never_fits_is_named(tmp_path: Path, keys: dict[str, Any], nodes: list[Node], said: str) -> None:
    study = load(tmp_path, zip=[["filter", "device"]], **keys)
    with pytest.raises(ConfigError) as caught:
        check_resources(study, nodes)
    assert f"{tmp_path}/study.yaml: {said}" in str(caught.value)


def test_what_fits(tmp_path: Path) -> None:
    study = load(tmp_path, {"resources": {"workers": 99}}, **TREES["zip"])
    assert check_resources(study, [Node(6, 0)]) == 6, "of the baseline's cells: nobody runs on what the base asks for"
    assert this_machine(study).gpus == 0


def test_hours_are_of_the_workers(tmp_path: Path) -> None:
    for cell in plan(tmp_path, **TREES["zip"]).cells:
        pretend(cell)
    hours = device_hours(plan(tmp_path, **TREES["zip"], seeds=2).cells)
    assert hours.by_line["filter=open device=two"] == pytest.approx(2 * hours.by_line["filter=gumbel device=one"])
    assert hours.total == pytest.approx(3 * 3 * EPOCH_S / 3600)
    assert not hours.guessed


def test_both_run_side_by_side(tmp_path: Path) -> None:
    made = plan(tmp_path, **TREES["zip"], seeds=2)
    first = [cell_id for _, cell_id in started(feed(made.cells, Node(7, 0)))]
    of_one = [cell.cell_id for cell in made.of_arm(made.study.arms[0])]
    of_two = [cell.cell_id for cell in made.of_arm(made.study.arms[1])]
    assert first == [of_one[0], of_two[0]], "one CPU and two times three: the next one has to wait"
