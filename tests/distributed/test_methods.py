"""Every method on W workers is that method on one: metrics, gradients, and the parameters after some steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from simlap.methods import build_method
from simlap.train.world import World
from tests.distributed import methods
from tests.distributed.conftest import Runs
from tests.distributed.network import relative

Found = dict[str, dict[str, Any]]


@pytest.fixture(name="alone", scope="module")
def _alone() -> Found:
    """What one process finds, case by case."""
    return {name: methods.run(experiment, World()) for name, experiment in methods.CASES.items()}


@pytest.mark.parametrize("case", methods.CASES)
def test_workers_compute_what_one_process_computes(runs: Runs, alone: Found, case: str) -> None:
    workers, one = [worker["methods"][case] for worker in runs.workers], alone[case]
    for worker in workers:
        assert worker["gradients"].keys() == one["gradients"].keys()
        # 1e-15 of the largest gradient, where a bias before a batch norm has none of its own, over the floor of 1e-6
        assert relative(worker["gradients"], one["gradients"]) <= 5e-9
    for name, expected in one["metrics"].items():
        total = sum(worker["metrics"][name].double() for worker in workers)
        counted = name.startswith("gate/") or name == "train/probe_top1"  # in float32
        torch.testing.assert_close(total, expected.double(), rtol=1e-6 if counted else 1e-9, atol=1e-12)
    assert sum(worker["loss"] for worker in workers) / len(workers) == pytest.approx(float(one["loss"]), rel=1e-9)


@pytest.mark.parametrize("case", methods.CASES)
def test_workers_stay_bit_equal_and_with_one_process(runs: Runs, alone: Found, case: str) -> None:
    states: list[dict[str, Tensor]] = [worker["methods"][case]["state"] for worker in runs.workers]
    for state in states[1:]:
        for name, value in states[0].items():
            assert torch.equal(state[name], value), name
    assert relative(states[0], alone[case]["state"]) <= 1e-6
    start = build_method(methods.CASES[case], num_classes=methods.NUM_CLASSES, channels=1, world=World())
    assert relative(states[0], start.state_dict()) > 1e-2  # something was learnt
