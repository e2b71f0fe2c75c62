"""Filters that are told the pairs, on two gloo workers with different numbers of pairs, against one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simlap.config.schema import ProductGate, SigmoidGate, StochasticGate
from simlap.data.batch import Pairs
from simlap.nn.filter import FeatureFilter, build_filter
from simlap.train.distributed import convert_sync_batchnorm
from tests.distributed.spawn import run_workers

NUM_CLASSES, D, STEPS = 4, 5, 3
GATES = {
    "sigmoid": SigmoidGate(kind="sigmoid", embedding_dim=6, hidden_dim=8),
    "product": ProductGate(kind="product", embedding_dim=6, hidden_dim=8),
    "stochastic": StochasticGate(kind="stochastic", embedding_dim=6, hidden_dim=8, regulariser=0.1),
}
LABELS = torch.tensor([0, 1, 0, 2, 0, 3, 1, 2, 0, 1, 1])
PAIR_LABELS = torch.tensor([0, 1, 0, 3, 1, 2, 0, 2, 0, 3, 0])
"""Even rows have two pairs, odd ones four."""


def steps(name: str, shard: slice, convert: bool, by_pair: bool) -> dict[str, Tensor]:
    """Gates and gradients of a few steps in training mode, then the state and the gates in evaluation mode."""
    torch.manual_seed(0)
    module: FeatureFilter = build_filter(GATES[name], NUM_CLASSES, D).double()  # type: ignore[arg-type]
    if convert:
        convert_sync_batchnorm(module)
    labels, pair_labels = LABELS[shard], PAIR_LABELS[shard]
    pairs = Pairs.of(labels, pair_labels) if by_pair else None
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        noise, weights = torch.randn(2, len(LABELS), D, generator=generator, dtype=torch.float64)
        made = module(labels, pair_labels, noise[shard], pairs)
        module.zero_grad()
        ((made.of_rows * weights[shard]).sum() + made.regulariser).backward()
        found |= {f"gates {step}": made.of_rows.detach(), f"sum regulariser {step}": made.regulariser.detach()}
        found |= {f"sum {name} {step}": p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    found |= {f"state {name}": x.clone() for name, x in module.state_dict().items()}
    found["gates at evaluation"] = module.eval()(labels, pair_labels, None, pairs).of_rows.detach()
    return found


def work(rank: int, world_size: int) -> dict[str, Any]:
    shard = slice(rank, None, world_size)
    return {name: steps(name, shard, convert=True, by_pair=True) for name in GATES}


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_workers(work, 2, Path(tmp_path_factory.mktemp("workers")))


def test_the_workers_differ_in_pairs() -> None:
    assert [len(Pairs.of(LABELS[rank::2], PAIR_LABELS[rank::2]).counts) for rank in (0, 1)] == [2, 4]


@pytest.mark.parametrize("name", GATES)
def test_two_uneven_workers_are_one_process_row_by_row(workers: list[dict[str, Any]], name: str) -> None:
    whole = steps(name, slice(None), convert=False, by_pair=False)
    parts = [worker[name] for worker in workers]
    for key, expected in whole.items():
        if key.startswith("sum"):
            got = [(parts[0][key] + parts[1][key], expected)]
        elif key.startswith("gates"):
            got = [(part[key], expected[rank::2]) for rank, part in enumerate(parts)]
        else:
            got = [(part[key], expected) for part in parts]
        for one, wanted in got:
            torch.testing.assert_close(one, wanted, rtol=1e-9, atol=1e-11, msg=f"{key}: {one} {wanted}")
