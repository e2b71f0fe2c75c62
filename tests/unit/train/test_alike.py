"""Digests of tensors, and what is said where the workers' differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simlap.run.failures import classify
from simlap.train import alike
from simlap.train.alike import DriftError, check_alike, digest
from simlap.train.world import World

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@given(st.sampled_from(DTYPES), st.integers(1, 40), st.data())
def test_every_bit_counts(dtype: torch.dtype, size: int, data: Any) -> None:
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(size)).mul(100).abs().to(dtype)
    found = int(digest(tensor))
    assert found == int(digest(tensor.clone().view(1, size)))
    bits = tensor.view(torch.uint8)
    place = data.draw(st.integers(0, len(bits) - 1))
    bits[place] ^= 1 << data.draw(st.integers(0, 7))
    assert int(digest(tensor)) != found


@given(st.integers(0, 19), st.integers(0, 19))
def test_places_count(one: int, other: int) -> None:
    tensor = torch.randn(20, generator=torch.Generator().manual_seed(0))
    swapped = tensor.clone()
    swapped[[one, other]] = tensor[[other, one]]
    assert (int(digest(swapped)) == int(digest(tensor))) == (one == other)


def test_order_in_memory_does_not_count() -> None:
    tensor = torch.randn(2, 3, 4, 4)
    assert int(digest(tensor)) == int(digest(tensor.contiguous(memory_format=torch.channels_last)))


def held_by(states: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What the first of several workers says, the others' digests being those of their states."""
    rows = torch.cat([torch.stack([digest(value) for value in state.values()]) for state in states])
    monkeypatch.setattr(alike, "gather", lambda mine: rows)
    try:
        check_alike(states[0], World(0, len(states)), "after 3 epochs")
    except DriftError as error:
        return str(error)
    return None


def test_who_differs_and_in_what(monkeypatch: pytest.MonkeyPatch) -> None:
    def states(*changed: int) -> list[dict[str, Tensor]]:
        made: list[dict[str, Tensor]] = [{name: torch.ones(3) for name in "abc"} for _ in range(4)]
        for rank in changed:
            made[rank]["b"][1] += rank
            made[rank]["c"][0] = -1
        return made

    assert held_by(states(), monkeypatch) is None
    found = held_by(states(2), monkeypatch) or ""
    assert found.startswith(
        "worker 2 of 4 differs from workers 0, 1, 3 after 3 epochs, first in b (2 of 3 tensors differ)"
    )
    found = held_by(states(1, 3), monkeypatch) or ""
    assert found.startswith("workers 0, 1, 2, 3 differ from each other after 3 epochs, first in b")
    found = held_by(states(0), monkeypatch) or ""
    assert found.startswith("worker 0 of 4 differs from workers 1, 2, 3")
    assert classify(f"DriftError: {found}") == "other", "it is tried again, from the checkpoint before"
