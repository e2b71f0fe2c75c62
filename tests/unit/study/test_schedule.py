"""Ray's ASHA with protected arms, and rungs that know what earlier launches measured."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from simlap.study.schedule import ProtectedAsha
from simlap.study.scheduling import Asha

NO_CONTROLLER: Any = None
ASHA = Asha(kind="asha", grace_epochs=1, reduction_factor=3)


def scheduler(mode: str = "max") -> ProtectedAsha:
    return ProtectedAsha(metric="m", mode=mode, asha=ASHA, max_epochs=9)


def trial(name: str, *, protected: bool = False) -> Any:
    return SimpleNamespace(
        trial_id=f"trial-{name}", config={"cell": {"cell_id": name, "protected": protected, "epochs": 9}}
    )


def report(asha: AsyncHyperBandScheduler, which: Any, epoch: int, value: float) -> str:
    return str(asha.on_trial_result(NO_CONTROLLER, which, {"epoch": epoch, "m": value}))


@pytest.mark.parametrize("mode", ["max", "min"])
def test_without_protection_it_is_rays(mode: str) -> None:
    ours = scheduler(mode)
    rays = AsyncHyperBandScheduler(
        time_attr="epoch", metric="m", mode=mode, max_t=10, grace_period=1, reduction_factor=3
    )
    generator = random.Random(0)
    decisions = []
    for number in range(40):
        name = trial(str(number))
        rays.on_trial_add(NO_CONTROLLER, name)
        for epoch in range(1, 9):
            value = generator.random()
            one, other = report(ours, name, epoch, value), report(rays, name, epoch, value)
            assert one == other
            decisions.append(one)
            if one == TrialScheduler.STOP:
                break
    assert TrialScheduler.STOP in decisions
    assert ours.rungs().keys() == {1, 3, 9}


def test_a_protected_cell_is_recorded_and_never_stopped() -> None:
    asha = scheduler()
    report(asha, trial("good"), 1, 0.9)
    assert report(asha, trial("shield", protected=True), 1, 0.1) == TrialScheduler.CONTINUE
    assert asha.rungs()[1] == {"good": 0.9, "shield": 0.1}
    assert report(asha, trial("bad"), 1, 0.1) == TrialScheduler.STOP
    assert set(asha.reasons) == {"bad"}
    assert "m 0.1000 at epoch 1 is not among the best 1/3 of 3 cells" in asha.reasons["bad"]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_rungs_rebuilt_from_the_journal_are_those_of_one_launch(mode: str) -> None:
    values = {str(number): [random.Random(number).random() for _ in range(9)] for number in range(6)}
    whole = scheduler(mode)
    for name, curve in values.items():
        for epoch, value in enumerate(curve, start=1):
            report(whole, trial(name, protected=True), epoch, value)
    rebuilt = scheduler(mode)
    for name, curve in values.items():
        rebuilt.prefill(name, 9, dict(enumerate(curve, start=1)), pending=False)
    assert rebuilt.rungs() == whole.rungs()


def test_a_resumed_cell_is_judged_at_rungs_it_had_not_reached() -> None:
    asha = scheduler()
    for name in ("a", "b", "c"):
        asha.prefill(name, 3, {1: 0.9, 2: 0.9, 3: 0.9}, pending=False)
    asha.prefill("late", 2, {1: 0.95, 2: 0.95}, pending=True)
    assert report(asha, trial("late"), 3, 0.1) == TrialScheduler.STOP


def test_a_cell_that_died_before_its_decision_gets_it_when_it_reports_again() -> None:
    asha = scheduler()
    for name in ("a", "b", "c"):
        asha.prefill(name, 2, {1: 0.9, 2: 0.9}, pending=False)
    asha.prefill("killed", 1, {1: 0.1}, pending=True)
    assert report(asha, trial("killed"), 2, 0.99) == TrialScheduler.STOP, "judged by what it had at the rung"
    assert "m 0.1000 at epoch 1" in asha.reasons["killed"]
    assert asha.rungs()[1]["killed"] == 0.1


def test_between_two_measurements_the_last_value_counts() -> None:
    asha = scheduler()
    asha.prefill("a", 4, {2: 0.5, 4: 0.7}, pending=False)
    assert asha.rungs() == {1: {}, 3: {"a": 0.5}, 9: {}}


def test_reaching_the_last_epoch_is_an_end_and_not_a_stop() -> None:
    """The last epoch may be a rung; a cell there has its evaluation still to come."""
    asha = scheduler()
    for name in ("a", "b", "c"):
        assert report(asha, trial(name), 9, 0.9) == TrialScheduler.CONTINUE
    assert report(asha, trial("worst"), 9, 0.1) == TrialScheduler.CONTINUE
    assert asha.rungs()[9]["worst"] == 0.1
    assert asha.reasons == {}


def test_why_a_cell_was_let_past_a_rung_is_kept() -> None:
    asha = scheduler()
    report(asha, trial("a"), 1, 0.5)
    assert asha.promotions.pop("a") == {
        "epoch": 1,
        "reason": "asha: m 0.5000 at epoch 1 is among the best 1/3 of 1 cells",
    }
    report(asha, trial("a"), 2, 0.5)
    assert asha.promotions == {}, "there is no rung at 2"
    for name in ("b", "c"):
        report(asha, trial(name), 1, 0.9)
    report(asha, trial("kept", protected=True), 1, 0.1)
    assert "but the cell is protected" in asha.promotions["kept"]["reason"]
    report(asha, trial("out"), 1, 0.1)
    assert "out" not in asha.promotions
    assert set(asha.reasons) == {"out"}
