"""Filters that are told the distinct pairs do what they do row by row."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from simlap import rng
from simlap.config.schema import Gate
from simlap.data.batch import Pairs
from simlap.nn.filter import FeatureFilter, build_filter
from simlap.nn.gate import GateOutput

D = 6
MLP = {"embedding_dim": 5, "hidden_dim": 7}
KINDS: dict[str, dict[str, Any]] = {
    "open": {"kind": "open"},
    "sign": {"kind": "sign"},
    "sigmoid": {"kind": "sigmoid", **MLP},
    "product": {"kind": "product", **MLP},
    "gumbel": {"kind": "gumbel", **MLP},
    "hard gumbel": {"kind": "gumbel", "hard": True, "temperature": 0.7, **MLP},
    "stochastic": {"kind": "stochastic", "regulariser": 0.1, **MLP},
}
NOISY = ("gumbel", "hard gumbel", "stochastic")


def make(name: str, num_classes: int) -> FeatureFilter:
    gate: Gate = TypeAdapter(Gate).validate_python(KINDS[name])
    rows = torch.randn(num_classes, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return build_filter(gate, num_classes, D, weights=lambda: rows).double()


def outcome(module: FeatureFilter, made: GateOutput, weights: Tensor) -> dict[str, Tensor]:
    """What a step sees of the gates."""
    module.zero_grad()
    total = (made.of_rows * weights).sum() + made.regulariser
    if total.requires_grad:
        total.backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert len(gradients) == len([*module.parameters()])
    return {"gates": made.of_rows, "regulariser": made.regulariser, **gradients, **dict(module.named_buffers())}


def assert_same_by_pair(name: str, labels: Tensor, pair_labels: Tensor, num_classes: int, training: bool) -> GateOutput:
    module = make(name, num_classes).train(training)
    twin, pairs = copy.deepcopy(module), Pairs.of(labels, pair_labels)
    for step in range(2):
        noise = module.draw_noise(len(labels), rng.generator(step))
        noise = None if noise is None else noise.double()
        weights = torch.randn(len(labels), D, dtype=torch.float64)
        made = module(labels, pair_labels, noise, pairs)
        expected = outcome(twin, twin(labels, pair_labels, noise), weights)
        for key, got in outcome(module, made, weights).items():
            torch.testing.assert_close(got, expected[key], rtol=1e-8, atol=1e-10, msg=f"{key}: {got} {expected[key]}")
    assert isinstance(made, GateOutput)
    return made


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("num_classes", [3, 40])
def test_gates_gradients_and_running_statistics(name: str, training: bool, num_classes: int) -> None:
    """Also where the classes are more than the pairs, which `product` does otherwise."""
    labels, pair_labels = torch.randint(3, (2, 24), generator=torch.Generator().manual_seed(2))
    made = assert_same_by_pair(name, labels, pair_labels, num_classes, training)
    by_row = name in NOISY and training
    assert (made.index is None) == by_row
    assert len(made.gates) == (24 if by_row else 1 if name == "open" else 6)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=10),
    st.sampled_from(["sigmoid", "product"]),
)
def test_any_pairs(drawn: list[tuple[int, int]], name: str) -> None:
    labels, pair_labels = torch.tensor(drawn).T
    # rows that are all one have variance 0; twins then differ by rounding times 1 / eps
    if len({y for pair in drawn for y in pair}) > 2 and len(Pairs.of(labels, pair_labels).counts) > 2:
        assert_same_by_pair(name, labels, pair_labels, 4, training=True)


def test_the_network_runs_once_for_each_pair_or_class() -> None:
    labels, pair_labels = torch.tensor([0, 1, 2, 1, 0, 1]), torch.tensor([1, 0, 2, 0, 1, 1])
    pairs = Pairs.of(labels, pair_labels)
    for name, num_classes, rows in (("sigmoid", 9, 3), ("gumbel", 9, 3), ("product", 4, 4), ("product", 9, 6)):
        module = make(name, num_classes)
        seen: list[int] = []
        first = next(layer for layer in module.modules() if isinstance(layer, nn.Linear))
        first.register_forward_hook(lambda _, args, __, seen=seen: seen.append(len(args[0])))
        module(labels, pair_labels, torch.zeros(6, D, dtype=torch.float64), pairs)
        assert seen == [rows], name


def test_noise_is_each_rows_own() -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    labels[2:] = 1
    module = make("gumbel", 2)
    noise = torch.randn(4, D, dtype=torch.float64)
    gates = module(labels, labels, noise, Pairs.of(labels, labels)).gates
    assert (gates[0] != gates[1]).all()
    with pytest.raises(ValueError, match=r"noise of shape \[4, 6\].*not \[2, 6\]"):
        module(labels, labels, noise[:2], Pairs.of(labels, labels))


@pytest.mark.parametrize("name", KINDS)
def test_no_value_is_read(name: str) -> None:
    """Nothing waits for the device: on fake CUDA tensors, which have no values, reading one is an error."""
    gate: Gate = TypeAdapter(Gate).validate_python(KINDS[name])
    with FakeTensorMode(), torch.device("cuda"):
        labels, counts = torch.zeros(6, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
        module = build_filter(gate, 5, D, weights=lambda: torch.ones(5, D))
        made = module(labels, labels, torch.ones(6, D), Pairs(labels[:2], labels[:2], labels, counts))
        of_rows = made.of_rows
    assert of_rows.shape == (6, D)
    assert of_rows.device.type == "cuda"
