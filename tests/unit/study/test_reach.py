"""What planned seeds can never show is an error; what they hardly show is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simlap.config import yaml
from simlap.errors import ConfigError
from simlap.storage import Storage
from simlap.study.options import Options
from simlap.study.plan import Plan, make_plan
from simlap.study.power import power_of, seeds_needed
from simlap.study.reach import check_reach, detection, out_of_margin, warnings
from simlap.study.spec import load_study
from tests.tiny import TREE
from tests.unit.study.pretend import pretend


def plan(folder: Path, options: Options | None = None, **keys: Any) -> Plan:
    tree = {
        "name": "small", "base": "base.yaml", "baseline": {"lr": 0.01}, "seeds": 4,
        "factors": {"lr": {"path": "optim.lr", "levels": [0.01, 0.02, 0.03]}}, **keys,
    }  # fmt: skip
    (folder / "base.yaml").write_text(yaml.dump({**TREE, "evaluate": [{"kind": "probe"}]}))
    (folder / "study.yaml").write_text(yaml.dump(tree))
    return make_plan(load_study(folder / "study.yaml"), Storage(folder / "runs"), options)


@pytest.mark.parametrize(
    ("seeds", "detect", "reason"),
    [
        (1, 0.01, "with 1 paired seeds a paired t test has p >= 1 x 2 comparisons; it takes at least 2 seeds"),
        (6, {"difference": 0.01, "test": "sign_flip"}, "a sign-flip test has p >= 0.03125 x 2 comparisons; it takes at least 7"),
        ([3, 4, 5], {"difference": 0.01, "test": "wilcoxon"}, "a signed-rank test has p >= 0.25 x 2"),
    ],
)  # fmt: skip
def test_seeds_that_can_never_show_anything(tmp_path: Path, seeds: Any, detect: Any, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, seeds=seeds, detect=detect)
    assert f"{tmp_path}/study.yaml: seeds: p < 0.05 is out of reach" in str(caught.value)
    assert reason in str(caught.value)
    assert len(plan(tmp_path, Options(seeds=7), seeds=seeds, detect=detect).cells) == 21


def test_without_a_wish_nothing_is_refused(tmp_path: Path) -> None:
    made = plan(tmp_path, seeds=1)
    assert (detection(made), warnings(made)) == (None, [])


def test_wishes_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="detect"):
        plan(tmp_path, detect=0.0)
    with pytest.raises(ConfigError, match="detect"):
        plan(tmp_path, detect={"difference": 0.1, "tset": "t"})


def test_power_from_the_spread_so_far(tmp_path: Path) -> None:
    unknown = detection(plan(tmp_path, detect=0.01))
    assert unknown is not None
    assert unknown.words("m") == "power for a difference of 0.01 in m: unknown until two seeds of the baseline are done"
    for cell in plan(tmp_path).cells[:6]:
        pretend(cell)
    from simlap.study.estimate import detectable

    made = plan(tmp_path, detect=0.001)
    known, found = detectable(made), detection(made)
    assert known is not None
    assert found is not None
    assert found.power == pytest.approx(power_of(0.001, 4, known.std, comparisons=2))
    assert found.needed == seeds_needed(0.001, known.std, comparisons=2)
    assert found.low
    assert f"; 80 % would take {found.needed} seeds" in found.words("m")
    assert warnings(made) == [found.words("test/probe_top1")]
    enough = detection(plan(tmp_path, detect=10 * known.difference))
    assert enough is not None
    assert not enough.low
    assert "would take" not in enough.words("m")


def test_a_margin_that_the_spread_does_not_allow(tmp_path: Path) -> None:
    for cell in plan(tmp_path).cells[:6]:
        pretend(cell)
    made = plan(tmp_path)
    for margin, reachable in ((1e-6, False), (10.0, True)):
        rules = {"scheduler": {"kind": "race", "margin": margin}}
        race = Plan(**{**vars(made), "study": _study(tmp_path, **rules), "_by_arm": {}})
        assert (out_of_margin(race) is None) is reachable
    small = _study(tmp_path, detect=0.005, scheduler={"kind": "race", "margin": 0.01})
    with pytest.raises(ConfigError, match=r"detect: must be more than scheduler\.margin \(0\.01\)"):
        check_reach(small)


def _study(folder: Path, **keys: Any) -> Any:
    tree = {**yaml.parse((folder / "study.yaml").read_text()), **keys}
    (folder / "race.yaml").write_text(yaml.dump(tree))
    return load_study(folder / "race.yaml")
