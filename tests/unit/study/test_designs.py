"""Zipped, conditional and sampled factors, in every design."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simlap.config import override, yaml
from simlap.config.schema import SimLAP
from simlap.errors import ConfigError
from simlap.study.levels import ABSENT
from simlap.study.spec import Study, load_study
from tests.tiny import TREE

FACTORS: dict[str, Any] = {
    "filter": {"path": "method.gate", "levels": {"on": {"kind": "gumbel"}, "off": {"kind": "open"}}},
    "noise": {"path": "method.gate.noise", "levels": ["logistic", "gumbel"], "when": {"filter": "on"}},
    "lr": {"path": "optim.lr", "levels": [0.01, 0.02, 0.02]},
    "decay": {"path": "optim.weight_decay", "levels": [0.0, 0.1, 0.2]},
}
BASELINE: dict[str, Any] = {"filter": "on", "noise": "logistic", "lr": 0.01, "decay": 0.0}


def load(folder: Path, *names: str, **keys: Any) -> Study:
    """A study over some of FACTORS (default: all)."""
    chosen = names or tuple(FACTORS)
    tree: dict[str, Any] = {"name": "d", "base": "base.yaml", "factors": {name: FACTORS[name] for name in chosen}}
    return write(folder, tree | {"baseline": {name: BASELINE[name] for name in chosen}} | keys)


def write(folder: Path, tree: dict[str, Any]) -> Study:
    (folder / "base.yaml").write_text(yaml.dump(TREE))
    (folder / "study.yaml").write_text(yaml.dump(tree))
    return load_study(folder / "study.yaml")


def arms(study: Study) -> list[str]:
    """Levels of every arm."""
    return [" ".join(arm.levels.values()) for arm in study.arms]


def test_zipped_factors_go_together(tmp_path: Path) -> None:
    zipped = {"zip": [["decay", "lr"]]}
    names = ("filter", "lr", "decay")
    assert arms(load(tmp_path, *names, **zipped)) == [
        "on 0.01 0.0", "on 0.02 0.1", "on 0.02 0.2", "off 0.01 0.0", "off 0.02 0.1", "off 0.02 0.2",
    ]  # fmt: skip
    assert arms(load(tmp_path, *names, **zipped, design="one_at_a_time")) == [
        "on 0.01 0.0", "off 0.01 0.0", "on 0.02 0.1", "on 0.02 0.2",
    ]  # fmt: skip
    listed = {"design": "list", "arms": [{}, {"decay": 0.2}, {"filter": "off", "lr": 0.02, "decay": 0.1}]}
    assert arms(load(tmp_path, *names, **zipped, **listed)) == ["on 0.01 0.0", "on 0.02 0.2", "off 0.02 0.1"]
    excluded = load(tmp_path, *names, **zipped, exclude=[{"lr": 0.02}], protect=[{"filter": "off"}])
    assert [(arm.name, arm.protected) for arm in excluded.arms] == [
        ("filter=on lr=0.01 decay=0.0", True), ("filter=off lr=0.01 decay=0.0", True),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"arms\.1: levels of lr\+decay.*go with several levels of the others"):
        load(tmp_path, *names, **zipped, design="list", arms=[{}, {"lr": 0.02}])


def test_zipped_leave_one_out(tmp_path: Path) -> None:
    lr = {"path": "optim.lr", "levels": {"low": 0.01, "high": 0.02}}
    decay = {"path": "optim.weight_decay", "levels": [0.0, 0.1]}
    tree = {
        "name": "d", "base": "base.yaml", "design": "leave_one_out", "zip": [["lr", "decay"]],
        "factors": {"filter": FACTORS["filter"], "lr": lr, "decay": decay},
        "baseline": {"filter": "off", "lr": "low", "decay": 0.0},
    }  # fmt: skip
    assert arms(write(tmp_path, tree)) == ["off low 0.0", "on high 0.1", "off high 0.1", "on low 0.0"]


def test_conditional_factors(tmp_path: Path) -> None:
    study = load(tmp_path, "noise", "filter")
    assert arms(study) == ["logistic on", f"{ABSENT} off", "gumbel on"]
    assert [arm.name for arm in study.arms] == ["noise=logistic filter=on", "filter=off", "noise=gumbel filter=on"]
    gates = [arm.experiment.method.gate for arm in study.arms if isinstance(arm.experiment.method, SimLAP)]
    assert [(gate.kind, getattr(gate, "noise", None)) for gate in gates] == [
        ("gumbel", "logistic"), ("open", None), ("gumbel", "gumbel"),
    ]  # fmt: skip
    assert [
        arm.name
        for arm in load(tmp_path, "noise", "filter", exclude=[{"noise": "logistic", "filter": "off"}, {}][:0]).arms
    ]
    assert arms(load(tmp_path, "noise", "filter", design="one_at_a_time")) == [
        "logistic on", "gumbel on", f"{ABSENT} off",
    ]  # fmt: skip
    listed = load(tmp_path, "filter", "noise", design="list", arms=[{}, {"filter": "off"}])
    assert arms(listed) == ["on logistic", f"off {ABSENT}"]
    with pytest.raises(ConfigError, match=r"arms\.1\.noise: does not exist in this arm"):
        load(tmp_path, "filter", "noise", design="list", arms=[{}, {"filter": "off", "noise": "gumbel"}])


def test_a_baseline_without_the_conditional_factor(tmp_path: Path) -> None:
    study = load(tmp_path, "filter", "noise", baseline={"filter": "off"})
    assert arms(study) == ["on logistic", "on gumbel", f"off {ABSENT}"]
    assert [arm.baseline for arm in study.arms] == [False, False, True]
    with pytest.raises(ConfigError, match=r"factors\.noise\.when: does not exist in the arm that one_at_a_time"):
        load(tmp_path, "filter", "noise", baseline={"filter": "off"}, design="one_at_a_time")
    with pytest.raises(ConfigError, match=r"factors\.noise\.when: does not exist in the arm that leave_one_out"):
        load(tmp_path, "filter", "noise", design="leave_one_out")


def test_conditions_chain(tmp_path: Path) -> None:
    """A factor whose condition does not exist does not exist."""
    factors = {
        "c": {"path": "method.projector_hidden_dim", "levels": [8, 16], "when": {"b": [16, 32]}},
        "b": {"path": "method.embed_dim", "levels": [8, 16, 32], "when": {"a": 0.1}},
        "a": {"path": "method.temperature", "levels": [0.1, 0.2]},
    }
    tree = {"name": "d", "base": "base.yaml", "factors": factors, "baseline": {"a": 0.1, "b": 8}}
    assert arms(write(tmp_path, tree)) == [
        f"{ABSENT} 8 0.1", f"{ABSENT} {ABSENT} 0.2", "8 16 0.1", "8 32 0.1", "16 16 0.1", "16 32 0.1",
    ]  # fmt: skip


def test_factors_that_never_meet_may_share_a_place(tmp_path: Path) -> None:
    when: dict[str, Any] = {"filter": "on"}
    factors: dict[str, Any] = {
        "filter": FACTORS["filter"],
        "low": {"path": "optim.lr", "levels": [0.01, 0.02], "when": when},
        "high": {"path": "optim.lr", "levels": [0.1, 0.2], "when": {"filter": "off"}},
    }
    tree = {"name": "d", "base": "base.yaml", "factors": factors, "baseline": {"filter": "on", "low": 0.01}}
    assert [arm.experiment.optim.lr for arm in write(tmp_path, tree).arms] == [0.01, 0.02, 0.1, 0.2]
    when["filter"] = ["on", "off"]
    with pytest.raises(ConfigError, match=r"factors\.high\.path: changes the same place as factors\.low\.path"):
        write(tmp_path, tree)


def sampled(how: str, **more: Any) -> dict[str, Any]:
    return {"low": 0.001, "high": 0.1, "scale": "log", "how": how, "n": 3, **more}


def test_sampled_together_and_crossed_with_others(tmp_path: Path) -> None:
    factors = {
        "lr": {"path": "optim.lr", "sample": sampled("latin_hypercube")},
        "filter": FACTORS["filter"],
        "decay": {"path": "optim.weight_decay", "sample": sampled("latin_hypercube")},
    }
    tree = {"name": "d", "base": "base.yaml", "factors": factors}
    study = write(tmp_path, tree | {"baseline": {"lr": 1e-2, "filter": "on", "decay": 0.1}})
    points = list(dict.fromkeys((arm.levels["lr"], arm.levels["decay"]) for arm in study.arms))
    assert points[0] == ("0.01", "0.1"), "the baseline's, before the three that are drawn"
    assert len(points) == 4
    assert len(study.arms) == 8
    assert all(arm.experiment.optim.lr == float(arm.levels["lr"]) for arm in study.arms)
    drawn = {"lr": float(points[1][0]), "filter": "on", "decay": float(points[1][1])}
    assert len(write(tmp_path, tree | {"baseline": drawn}).arms) == 6, "a baseline that is drawn is not added"
    assert study.spec.factors["lr"].named() == {lr: float(lr) for lr, _ in points}, "what the plan lists"
    assert arms(write(tmp_path, tree | {"baseline": drawn, "design": "one_at_a_time"}))[0] == " ".join(
        (points[1][0], "on", points[1][1])
    )


def test_a_grid_has_the_baseline_in_its_place(tmp_path: Path) -> None:
    factors = {"lr": {"path": "optim.lr", "sample": sampled("grid")}}
    tree = {"name": "d", "base": "base.yaml", "factors": factors}
    assert arms(write(tmp_path, tree | {"baseline": {"lr": 0.02}})) == ["0.001", "0.01", "0.02", "0.1"]
    assert arms(write(tmp_path, tree | {"baseline": {"lr": 1e-2}})) == ["0.001", "0.01", "0.1"]
    excluded = write(tmp_path, tree | {"baseline": {"lr": 1e-2}, "exclude": [{"lr": 1e-3}]})
    assert arms(excluded) == ["0.01", "0.1"]


PLACES: dict[str, tuple[str, list[Any]]] = {
    "t": ("method.temperature", [0.1, 0.2, 0.3]),
    "w": ("method.embed_dim", [8, 16, 32]),
    "p": ("method.pairs", ["arbitrary", "identical", "distinct"]),
    "l": ("optim.lr", [0.01, 0.02, 0.03]),
}


@st.composite
def studies(draw: st.DrawFn) -> dict[str, Any]:
    """Small studies of up to four factors: some zipped, some conditional, some sampled, some arms excluded."""
    names = draw(st.permutations(sorted(PLACES)))[: draw(st.integers(1, 4))]
    factors: dict[str, Any] = {}
    for name in names:
        path, values = PLACES[name]
        factors[name] = {"path": path, "levels": values[: draw(st.integers(1, 3))]}
        if name == "l" and draw(st.booleans()):
            how = draw(st.sampled_from(["grid", "random", "latin_hypercube"]))
            factors[name] = {"path": path, "sample": {"low": 0.01, "high": 0.1, "n": 2, "how": how}}
    plain = [name for name in names if "levels" in factors[name]]
    zipped: list[list[str]] = []
    if len(plain) > 1 and draw(st.booleans()):
        zipped = [plain[:2]]
        n = min(len(factors[name]["levels"]) for name in plain[:2])
        for name in plain[:2]:
            factors[name]["levels"] = factors[name]["levels"][:n]
    free = [name for name in plain if not any(name in group for group in zipped)]
    for inner, outer in itertools.pairwise(free):
        if draw(st.booleans()):
            levels = factors[outer]["levels"]
            factors[inner]["when"] = {outer: draw(st.lists(st.sampled_from(levels), min_size=1, unique=True))}
    i = draw(st.integers(0, 2))
    baseline = {
        name: f["levels"][i if name in zipped[0] and i < len(f["levels"]) else 0] if zipped else f["levels"][0]
        for name, f in factors.items() if "levels" in f
    } | {name: 0.05 for name, f in factors.items() if "sample" in f}  # fmt: skip
    exclude = [{name: draw(st.sampled_from(factors[name]["levels"]))} for name in plain[: draw(st.integers(0, 1))]]
    design = draw(st.sampled_from(["factorial", "one_at_a_time"]))
    return {
        "name": "p", "base": "base.yaml", "factors": factors, "baseline": baseline, "zip": zipped, "exclude": exclude,
        "design": design,
    }  # fmt: skip


def possible(folder: Path, tree: dict[str, Any]) -> Study | None:
    """The study, or None for one of the errors that such studies can have."""
    try:
        return write(folder, tree)
    except ConfigError as error:
        if not any(
            words in str(error) for words in ("leaves it out", "matches no arm", "that one_at_a_time would change")
        ):
            raise
        return None


@given(studies(), st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_arms_of_any_small_study(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any], random: Any) -> None:
    folder = tmp_path_factory.mktemp("study")
    study = possible(folder, tree)
    assume(study is not None)
    assert study is not None
    seen = [tuple(arm.levels.items()) for arm in study.arms]
    assert len(set(seen)) == len(seen) == len({arm.name for arm in study.arms})
    assert len({arm.experiment.model_dump_json() for arm in study.arms}) == len(seen), "no two train the same"
    assert [arm.baseline for arm in study.arms].count(True) == 1
    factors = study.spec.factors
    for arm in study.arms:
        assert list(arm.levels) == list(tree["factors"])
        for combination in tree["exclude"]:
            assert any(arm.levels[f] != str(level) for f, level in combination.items())
        for group in tree["zip"]:
            columns = [[*map(str, factors[f].levels or ())] for f in group]
            assert tuple(arm.levels[f] for f in group) in zip(*columns, strict=True)
        for name, factor in factors.items():
            here = all(arm.levels[o] in map(str, wanted) for o, wanted in (factor.when or {}).items())  # type: ignore[arg-type]
            assert (arm.levels[name] != ABSENT) == here
        # the shared parts make what all changes at once make
        changes = [(factors[f].path, factors[f].named()[level]) for f, level in arm.levels.items() if level != ABSENT]
        assert arm.experiment == override(study.base, changes)
    shuffled = {
        key: dict(random.sample(list(value.items()), len(value))) if isinstance(value, dict) else value
        for key, value in random.sample(list(tree.items()), len(tree))
    }
    again = write(folder, shuffled)
    assert {frozenset(arm.levels.items()): arm.experiment for arm in again.arms} == {
        frozenset(arm.levels.items()): arm.experiment for arm in study.arms
    }


@pytest.mark.parametrize("paths", [("method.temperature", "method.gate_penalty"), ("method.temperature", "optim.lr")])
def test_thousands_of_arms_load(tmp_path: Path, paths: tuple[str, str]) -> None:
    factors = {
        "a": {"path": paths[0], "sample": {"low": 0.1, "high": 1, "n": 50}},
        "b": {"path": paths[1], "sample": {"low": 0.01, "high": 1, "n": 40}},
    }
    study = write(tmp_path, {"name": "d", "base": "base.yaml", "factors": factors, "baseline": {"a": 0.1, "b": 0.01}})
    assert len(study.arms) == 2000


PLANNING = """
import sys
from simlap.study.spec import load_study
load_study(sys.argv[1])
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "ray", "scipy", "mlflow", "timm"}))
"""


def test_reading_a_study_needs_neither_torch_nor_ray(tmp_path: Path) -> None:
    load(tmp_path, "filter", "noise")
    run = subprocess.run(
        [sys.executable, "-c", PLANNING, str(tmp_path / "study.yaml")], capture_output=True, text=True, check=False
    )
    assert (run.stdout.strip(), run.stderr) == ("[]", "")
