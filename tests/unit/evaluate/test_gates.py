from __future__ import annotations

import math

import pytest
import torch

from simlap.evaluate import gate_statistics, gate_warning


def test_values_by_hand() -> None:
    gates = torch.tensor([[0.5, 1.0], [0.0, 0.75]])
    got = {name: float(value) / 2 for name, value in gate_statistics(gates).items()}
    entropy = (math.log(2) - 0.75 * math.log(0.75) - 0.25 * math.log(0.25)) / 4
    assert got == pytest.approx({"mean": 0.5625, "entropy": entropy, "activation": 1.125, "open_fraction": 0.5})


def test_parts_add_up_to_the_whole() -> None:
    gates = torch.rand(30, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    whole = gate_statistics(gates)
    parts = [gate_statistics(part) for part in gates.split((7, 23))]
    for name, value in whole.items():
        assert not value.requires_grad
        torch.testing.assert_close(parts[0][name] + parts[1][name], value)


def test_decided_gates_have_no_entropy() -> None:
    statistics = gate_statistics(torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.bfloat16))
    assert float(statistics["entropy"]) == 0
    assert float(statistics["activation"]) == 2


@pytest.mark.parametrize(("mean", "words"), [(0.0, "near 0"), (0.004, "near 0"), (0.996, "near 1"), (1.0, "near 1")])
def test_warns_at_the_ends(mean: float, words: str) -> None:
    warning = gate_warning(mean)
    assert warning is not None
    assert words in warning


@pytest.mark.parametrize("mean", [0.01, 0.5, 0.99])
def test_is_silent_in_between(mean: float) -> None:
    assert gate_warning(mean) is None


def test_gates_with_counts_are_the_repeated_rows() -> None:
    gates, counts = torch.rand(4, 7), torch.tensor([3, 0, 1, 5])
    repeated = gate_statistics(gates.repeat_interleave(counts, 0))
    for name, value in gate_statistics(gates, counts).items():
        torch.testing.assert_close(value, repeated[name], msg=name)
