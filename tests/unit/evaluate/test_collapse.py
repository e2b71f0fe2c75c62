from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from simlap.evaluate import collapse_metrics
from simlap.evaluate.collapse import SPECTRUM, spectrum, uniformity

RANKS = {"effective_rank", "participation_ratio"}
SPREADS = {"std_mean", "std_min", "unit_std_mean", "unit_std_min"}


def _z(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def _labels(n: int, classes: int = 3) -> Tensor:
    return torch.arange(n) % classes


def shares(z: Tensor) -> set[str]:
    """Names of the shares of the spectrum of z."""
    return {f"{SPECTRUM}{rank:04d}" for rank in (1, 2, 4, 8, 16, 32) if rank <= z.shape[1]}


@pytest.mark.parametrize(("n", "d"), [(40, 6), (5, 9), (2, 1)])
def test_shares_of_the_spectrum_are_those_of_the_covariance(n: int, d: int) -> None:
    z = _z(n, d).double()
    values = torch.linalg.eigvalsh(torch.cov(z.T, correction=0).reshape(d, d)).flip(0).clamp(min=0)
    found = {name: value for name, value in collapse_metrics(z, _labels(n)).items() if name.startswith(SPECTRUM)}
    assert set(found) == shares(z)
    for name, value in found.items():
        share = float(values[int(name.removeprefix(SPECTRUM)) - 1] / values.sum())
        assert value == pytest.approx(share, rel=1e-9, abs=1e-12)


def test_rank_of_known_spectra() -> None:
    isotropic = torch.cat((torch.eye(5), -torch.eye(5)))
    metrics = collapse_metrics(isotropic, _labels(10))
    assert metrics["effective_rank"] == pytest.approx(5, rel=1e-9)
    assert metrics["participation_ratio"] == pytest.approx(5, rel=1e-9)
    line = torch.linspace(-1, 1, 20)[:, None] * torch.tensor([[1.0, -2.0, 3.0]])
    metrics = collapse_metrics(line, _labels(20))
    assert metrics["effective_rank"] == pytest.approx(1, abs=1e-6)
    assert metrics["participation_ratio"] == pytest.approx(1, abs=1e-6)
    # eigenvalues in the proportion 3 : 1
    two = torch.tensor([[3.0**0.5, 0.0], [-(3.0**0.5), 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    metrics = collapse_metrics(two, _labels(4))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert metrics["effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-9)
    assert metrics["participation_ratio"] == pytest.approx(1 / (0.75**2 + 0.25**2), rel=1e-9)


@given(st.integers(2, 20), st.integers(1, 20), st.integers(0, 50), st.floats(0.01, 100), st.floats(-10, 10))
@settings(deadline=None, max_examples=50)
def test_rank_ignores_rotation_scale_and_offset(n: int, d: int, seed: int, scale: float, offset: float) -> None:
    z = _z(n, d, seed).double()
    rotation = torch.linalg.qr(_z(d, d, seed + 1).double()).Q
    one, other = (collapse_metrics(x, _labels(n)) for x in (z, (z @ rotation) * scale + offset))
    for name in ("effective_rank", "participation_ratio"):
        assert other[name] == pytest.approx(one[name], rel=1e-6)
        assert 1 - 1e-9 <= one[name] <= min(d, n - 1) + 1e-6


@given(st.integers(2, 15), st.integers(1, 15), st.integers(0, 50))
@settings(deadline=None, max_examples=50)
def test_unit_sphere_measures_ignore_rotation_and_length(n: int, d: int, seed: int) -> None:
    z = _z(n, d, seed).double()
    rotation = torch.linalg.qr(_z(d, d, seed + 1).double()).Q
    lengths = _z(n, 1, seed + 2).double().abs() + 0.1
    one, other = (collapse_metrics(x, _labels(n)) for x in (z, (z @ rotation) * lengths))
    assert ("alignment" in one) == (n > 3)
    for name in {"alignment", "uniformity"} & set(one):
        assert other[name] == pytest.approx(one[name], rel=1e-6, abs=1e-9)


def test_both_sides_give_one_spectrum() -> None:
    z = _z(12, 30).double()
    wide = spectrum(z)  # from the 12 x 12 product
    centred = z - z.mean(0)
    full = torch.linalg.eigvalsh(centred.T @ centred / 12)  # 30 x 30
    assert len(wide) == 12
    torch.testing.assert_close(wide, full[-12:].clamp(min=0), rtol=1e-9, atol=1e-9)
    tall = torch.cat((z, z, z))  # the same covariance from 36 rows: the other side
    assert len(spectrum(tall)) == 30
    torch.testing.assert_close(spectrum(tall)[-12:], wide, rtol=1e-9, atol=1e-9)


def test_alignment_and_uniformity_equal_the_loops() -> None:
    z, labels = _z(25, 7), torch.randint(0, 4, (25,), generator=torch.Generator().manual_seed(1))
    unit = F.normalize(z.double(), dim=1)
    same, every = [], []
    for i, j in itertools.combinations(range(25), 2):
        distance = float((unit[i] - unit[j]).square().sum())
        every.append(math.exp(-2 * distance))
        if labels[i] == labels[j]:
            same.append(distance)
    metrics = collapse_metrics(z, labels)
    assert metrics["alignment"] == pytest.approx(sum(same) / len(same), rel=1e-9)
    assert metrics["uniformity"] == pytest.approx(math.log(sum(every) / len(every)), rel=1e-9)


def test_perfect_classes_are_aligned_and_full_collapse_is_not_uniform() -> None:
    labels = _labels(30)
    metrics = collapse_metrics(torch.eye(3)[labels] * 4, labels)
    assert metrics["alignment"] == pytest.approx(0, abs=1e-12)
    assert metrics["effective_rank"] == pytest.approx(2, rel=1e-9)
    assert collapse_metrics(torch.ones(30, 4), labels)["uniformity"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("z", [torch.zeros(10, 4), torch.full((10, 4), 0.1), torch.zeros(3, 8)])
def test_no_spread_is_rank_zero_and_finite(z: Tensor) -> None:
    metrics = collapse_metrics(z, _labels(len(z), 2))
    assert metrics["effective_rank"] == metrics["participation_ratio"] == 0
    assert set(metrics) == RANKS | SPREADS | shares(z) | {"alignment", "uniformity"}
    assert all(metrics[name] == 0 for name in shares(z))
    assert all(math.isfinite(value) for value in metrics.values())


def test_what_has_no_pairs_is_left_out() -> None:
    assert set(collapse_metrics(_z(1, 4), _labels(1))) == RANKS | SPREADS | shares(torch.zeros(1, 4))
    assert "alignment" not in collapse_metrics(_z(3, 4), torch.arange(3))
    with pytest.raises(ValueError, match="got none"):
        collapse_metrics(torch.zeros(0, 4), _labels(0))


def test_uniformity_of_many_rows_takes_evenly_spaced_ones() -> None:
    unit = F.normalize(_z(1000, 8).double(), dim=1)
    part = uniformity(unit, max_rows=250)
    assert part == uniformity(unit[::4])
    whole = uniformity(unit)
    assert part is not None
    assert whole is not None
    assert abs(part - whole) < 0.05


def test_spread_per_dimension_equals_the_loop() -> None:
    z = _z(9, 4) * torch.tensor([1.0, 5.0, 0.1, 2.0]) + 3
    metrics = collapse_metrics(z, _labels(9))
    for prefix, rows, scale in (("", z.double(), 1.0), ("unit_", F.normalize(z.double(), dim=1), 2.0)):
        spreads = []
        for d in range(4):
            values = rows[:, d].tolist()
            mean = sum(values) / 9
            spreads.append(scale * math.sqrt(sum((v - mean) ** 2 for v in values) / 9))
        assert metrics[f"{prefix}std_mean"] == pytest.approx(sum(spreads) / 4, rel=1e-9)
        assert metrics[f"{prefix}std_min"] == pytest.approx(min(spreads), rel=1e-9)


def test_evenly_spread_features_have_unit_spread_one_and_a_dead_dimension_none() -> None:
    for d in (3, 8):
        metrics = collapse_metrics(torch.cat((torch.eye(d), -torch.eye(d))) * 7, _labels(2 * d))
        assert metrics["unit_std_mean"] == pytest.approx(1, rel=1e-9)
        assert metrics["unit_std_min"] == pytest.approx(1, rel=1e-9)
    z = _z(20, 3)
    z[:, 1] = 0
    assert collapse_metrics(z, _labels(20))["std_min"] == 0
