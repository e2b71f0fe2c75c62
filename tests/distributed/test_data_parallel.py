"""W workers compute what one process computes, and a criterion outside the wrapper's forward would be noticed."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from torch import Tensor, equal

from tests.distributed import network
from tests.distributed.conftest import Runs

Results = dict[str, dict[str, Tensor]]


class Outcome(NamedTuple):
    workers: list[Results]
    reference: Results
    """One process with the whole batch and torch's batch norm."""


@pytest.fixture(scope="module")
def outcome(runs: Runs) -> Outcome:
    return Outcome([worker["network"] for worker in runs.workers], network.reference(runs.size))


@pytest.mark.parametrize("pairs", network.PAIRS)
def test_gradients_are_those_of_one_process(outcome: Outcome, pairs: str) -> None:
    workers, reference = outcome
    parameters = {name for name, _ in network.build().named_parameters()}
    for worker in workers:
        assert worker[pairs].keys() == parameters  # every parameter is reached, also without positives
        assert network.relative(worker[pairs], reference[pairs]) <= 1e-9


def test_training_follows_one_process(outcome: Outcome) -> None:
    """Parameters, and the running statistics of the batch norms."""
    workers, reference = outcome
    assert network.relative(workers[0]["trained"], reference["trained"]) <= 1e-6
    assert network.relative(reference["trained"], network.build().state_dict()) > 1e-2  # something was learnt


def test_workers_stay_bit_equal(outcome: Outcome) -> None:
    workers, _ = outcome
    for worker in workers[1:]:
        for name, value in workers[0]["trained"].items():
            assert equal(value, worker["trained"][name]), name


def test_criterion_past_the_wrapper_drifts_apart(outcome: Outcome) -> None:
    """The mistake of calling `ddp.module(...)`: if this could not be seen, the tests above would prove nothing."""
    workers, reference = outcome
    parameters = [name for name, _ in network.build().named_parameters()]
    states = [{name: worker["past DDP"][name] for name in parameters} for worker in workers]
    assert network.relative(states[0], states[1]) > 1e-2
    assert network.relative(states[0], {name: reference["trained"][name] for name in parameters}) > 1e-2
