"""The keys that go round give what one process gives, and what gathering them gives; none of the workers holds them all."""

from __future__ import annotations

import pytest
import torch

from simlap.losses import subspace_info_nce
from tests.distributed import ring
from tests.distributed.conftest import Runs


@pytest.mark.parametrize("number", range(len(ring.CASES)))
def test_workers_get_what_a_loop_over_the_whole_batch_gives(runs: Runs, number: int) -> None:
    """Value and all gradients; every worker weighs its loss differently, so that each gradient shows whose it is."""
    case = ring.CASES[number]
    # bfloat16: the arithmetic is float32, but the gradients come back in 8 bits
    tolerance = 1e-9 if case.dtype == torch.float64 else 2e-2
    for rank, expected in enumerate(ring.naive(case, runs.size, runs.world_size)):
        for form in ("ring", "ring in blocks", "gathered"):
            found = runs.workers[rank]["ring"][form][number]
            for name, value in expected.items():
                scale = max(1e-3, float(value.abs().max()) if value.numel() else 0.0)
                torch.testing.assert_close(
                    found[name].double(), value, rtol=0, atol=tolerance * scale, msg=f"{case}, {form}, {name}"
                )


def test_cases_are_not_all_zero(runs: Runs) -> None:
    found = [worker["ring"]["ring"][0] for worker in runs.workers]
    assert all(float(value.abs().max()) > 1e-4 for result in found for value in result.values())


def test_gradients_keep_the_dtype_of_their_input(runs: Runs) -> None:
    for case, result in zip(ring.CASES, runs.workers[0]["ring"]["ring"], strict=True):
        assert result["z"].dtype == result["gates"].dtype == case.dtype
        assert result["temperature"].dtype == torch.float64


def test_no_worker_holds_more_than_two_visiting_shares(runs: Runs) -> None:
    largest = max(max(ring.inputs(case, runs.size, runs.world_size).sizes) for case in ring.CASES)
    for worker in runs.workers:
        assert worker["ring"]["held"] <= 2 * largest


def test_a_group_of_one_is_one_process(runs: Runs) -> None:
    whole = ring.inputs(ring.CASES[0], runs.size, 1)
    expected = subspace_info_nce(whole.z, whole.z, whole.gates, whole.labels, whole.pair_labels, whole.labels)
    assert runs.workers[0]["ring"]["alone"] == pytest.approx(float(expected), rel=1e-12)


def test_sizes_that_are_not_the_workers_are_refused(runs: Runs) -> None:
    for rank, worker in enumerate(runs.workers):
        message = f"sizes [{runs.size}] do not fit worker {rank} of {runs.world_size} with {runs.size} rows"
        assert worker["ring"]["sizes"] == message
