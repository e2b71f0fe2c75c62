"""Keyed draws: known answers, and independence of everything but the key."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from simlap import rng


def words(value: int) -> torch.Tensor:
    return torch.tensor([value])


def test_philox_known_answers() -> None:
    """From the test vectors of the Random123 library (Salmon et al., SC'11)."""
    zero, ones = words(0), words(0xFFFFFFFF)
    assert [int(x) for x in rng.philox((zero,) * 4, 0)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert [int(x) for x in rng.philox((ones,) * 4, 2**64 - 1)] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = [words(x) for x in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)]
    out = rng.philox((pi[0], pi[1], pi[2], pi[3]), 0x299F31D0A4093822)
    assert [int(x) for x in out] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8), st.integers(1, 9), st.integers(0, 3))
def test_a_row_depends_on_its_own_counters(rows: list[int], n: int, copy: int) -> None:
    samples = torch.tensor(rows)
    copies = torch.full_like(samples, copy)
    together = rng.uniform(rng.key("x"), samples, copies, n)
    alone = torch.cat([rng.uniform(rng.key("x"), samples[i : i + 1], copies[i : i + 1], n) for i in range(len(rows))])
    assert torch.equal(together, alone)
    longer = rng.uniform(rng.key("x"), samples, copies, n + 3)
    assert torch.equal(longer[:, :n], together), "drawing more leaves the first draws alone"


def test_uniform_is_uniform_and_open() -> None:
    draws = rng.uniform(rng.key(0), torch.arange(50_000), torch.zeros(50_000, dtype=torch.int64), 4)
    assert float(draws.min()) > 0
    assert float(draws.max()) < 1
    assert abs(float(draws.mean()) - 0.5) < 2e-3
    assert abs(float(draws.var()) - 1 / 12) < 1e-3
    correlation = torch.corrcoef(draws.T) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.02


def test_keys_tell_parts_apart() -> None:
    every: list[tuple[int | str, ...]] = [("a", 1), ("a", "1"), ("a1",), (1, "a"), ("a", 1, 0), ("a", 10)]
    assert len({rng.key(*parts) for parts in every}) == 6
    assert rng.key("pairs", 0) == rng.key("pairs", 0)
    one, same = rng.generator(0, "pairs", 1), rng.generator(0, "pairs", 1)
    assert torch.equal(torch.randperm(9, generator=one), torch.randperm(9, generator=same))
