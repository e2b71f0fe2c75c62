"""Value and gradients of the loss against its naive float64 twin."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simlap.losses import count_positives, subspace_info_nce
from simlap.losses.arguments import Positives, Similarity
from tests.parity import naive

SIMILARITIES: tuple[Similarity, Similarity] = ("cosine", "masked_dot")
POSITIVES: tuple[Positives, Positives] = ("pair", "either")


class Case(NamedTuple):
    vectors: tuple[Tensor, Tensor, Tensor]  # z, keys, gates
    labels: tuple[Tensor, Tensor, Tensor]  # labels, pair labels, key labels


def make_case(b: int, n: int, d: int, classes: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Case:
    """Random vectors and gates; drawn in float64 and rounded, so that twins see the same numbers."""
    g = torch.Generator().manual_seed(seed)
    z, keys = (torch.randn(rows, d, generator=g, dtype=torch.float64) for rows in (b, n))
    gates = torch.rand(b, d, generator=g, dtype=torch.float64)
    labels = tuple(torch.randint(classes, (rows,), generator=g) for rows in (b, b, n))
    return Case((z.to(dtype), keys.to(dtype), gates.to(dtype)), labels)  # type: ignore[arg-type]


def value_and_gradients(function: Any, case: Case, dtype: torch.dtype, **options: Any) -> tuple[Tensor, list[Tensor]]:
    inputs = [v.to(dtype).requires_grad_() for v in case.vectors]
    value = function(*inputs, *case.labels, **options)
    return value.detach(), list(torch.autograd.grad(value, inputs))


def assert_equal_to_naive(case: Case, dtype: torch.dtype, tolerance: float, **options: Any) -> None:
    """Norm-wise relative, value and each gradient."""
    value, gradients = value_and_gradients(subspace_info_nce, case, dtype, **options)
    expected, expected_gradients = value_and_gradients(naive.subspace_info_nce, case, torch.float64, **options)
    for name, got, want in zip(
        ("loss", "z", "keys", "gates"), (value, *gradients), (expected, *expected_gradients), strict=True
    ):
        error = (got.double() - want).norm()
        assert error <= tolerance * want.norm() + 1e-300, f"{name}: {error / want.norm():.2e}"


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("positives", POSITIVES)
@pytest.mark.parametrize("drop_self", [False, True])
@pytest.mark.parametrize("num_positives", [None, 37.5])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_equals_naive_twin(
    similarity: str, positives: str, drop_self: bool, num_positives: float | None, temperature: float
) -> None:
    case = make_case(10, 13, 7, classes=4)
    options = {
        "similarity": similarity,
        "positives": positives,
        "temperature": temperature,
        "num_positives": num_positives,
        "self_index": torch.arange(10) + 2 if drop_self else None,
    }
    if drop_self:  # own columns are the anchors themselves
        z, keys, gates = case.vectors
        case.labels[2][2:12] = case.labels[0]
        case = Case((z, torch.cat([keys[:2], z, keys[12:]]), gates), case.labels)
    assert_equal_to_naive(case, torch.float64, 1e-10, **options)
    single = Case(tuple(v.float() for v in case.vectors), case.labels)  # type: ignore[arg-type]
    assert_equal_to_naive(single, torch.float32, 2e-6 if temperature == 0.1 else 2e-5, **options)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_blocks_add_up(similarity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of anchors, the last one short."""
    case = make_case(11, 9, 5, classes=3)
    options = {"similarity": similarity, "self_index": torch.arange(11) % 9}
    module = sys.modules["simlap.losses.forms.blocks"]  # the package's attribute of this name is the function
    monkeypatch.setattr(module, "_BLOCK_ENTRIES", {"cpu": 1})
    monkeypatch.setattr(module, "_BLOCK_ROWS", 4)
    assert_equal_to_naive(case, torch.float64, 1e-10, **options)


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_single_precision_at_working_size(similarity: str, temperature: float) -> None:
    """Against our own float64, which the tests around this one tie to the twin."""
    case = make_case(256, 256, 64, classes=10, dtype=torch.float32)
    options = {"similarity": similarity, "temperature": temperature}
    value, gradients = value_and_gradients(subspace_info_nce, case, torch.float32, **options)
    expected, expected_gradients = value_and_gradients(subspace_info_nce, case, torch.float64, **options)
    for got, want in zip((value, *gradients), (expected, *expected_gradients), strict=True):
        assert (got.double() - want).norm() <= (2e-6 if temperature == 0.1 else 2e-5) * want.norm()


@st.composite
def structured(draw: st.DrawFn) -> tuple[Case, dict[str, Any]]:
    """Few classes, B != N, duplicated and zero rows, closed and binary gates, own columns dropped or not."""
    b, n, d = (draw(st.integers(1, 6)) for _ in range(3))
    classes = draw(st.integers(1, 4))
    case = make_case(b, n, d, classes, seed=draw(st.integers(0, 2**16)))
    z, keys, gates = case.vectors
    for rows in (z, keys, gates):
        for row in rows:
            row *= draw(st.sampled_from([1.0, 1.0, 1.0, 0.0, 1e-4]))
    if draw(st.booleans()):
        gates = (gates > 0.5).to(gates)
    if draw(st.booleans()):
        keys[0] = z[0]
    labels, pair_labels, key_labels = case.labels
    pairs = draw(st.sampled_from(["arbitrary", "identical", "absent"]))
    pair_labels = {"arbitrary": pair_labels, "identical": labels, "absent": pair_labels + 100}[pairs]
    options = {
        "similarity": draw(st.sampled_from(SIMILARITIES)),
        "positives": draw(st.sampled_from(POSITIVES)),
        "temperature": draw(st.sampled_from([1.0, 0.1, 0.01])),
        "self_index": torch.arange(b) % n if draw(st.booleans()) else None,
        "num_positives": draw(st.sampled_from([None, 5, 12.0])),
    }
    return Case((z, keys, gates), (labels, pair_labels, key_labels)), options


@given(structured())
def test_equals_naive_twin_on_structured_inputs(drawn: tuple[Case, dict[str, Any]]) -> None:
    case, options = drawn
    value, gradients = value_and_gradients(subspace_info_nce, case, torch.float64, **options)
    expected, expected_gradients = value_and_gradients(naive.subspace_info_nce, case, torch.float64, **options)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    # row by row: rows of size 1e-4 have gradients 1e4 times as large, and in these the twin's exact zeros can be 1e-10
    for got, want in zip(gradients, expected_gradients, strict=True):
        assert torch.isfinite(got).all()
        assert ((got - want).norm(dim=1) <= 1e-10 * want.norm() + 1e-9 * want.norm(dim=1) + 1e-9).all()


@given(structured())
def test_count_positives_is_the_definition(drawn: tuple[Case, dict[str, Any]]) -> None:
    (_, (labels, pair_labels, key_labels)), options = drawn
    own, either = options["self_index"], options["positives"] == "either"
    expected = sum(
        bool(key_labels[j] == pair_labels[i] or (either and key_labels[j] == labels[i]))
        and (own is None or j != own[i])
        for i in range(len(labels))
        for j in range(len(key_labels))
    )
    assert count_positives(labels, pair_labels, key_labels, own, options["positives"]) == expected


@given(structured(), st.integers(2, 3))
def test_workers_add_up_to_one_process(drawn: tuple[Case, dict[str, Any]], workers: int) -> None:
    """Each has every W-th anchor, all keys and the global number of positives."""
    case, options = drawn
    labels, pair_labels, key_labels = case.labels
    own, positives = options["self_index"], options["positives"]
    shards = [slice(rank, None, workers) for rank in range(workers)]
    owns = [None if own is None else own[shard] for shard in shards]
    count = sum(
        int(count_positives(labels[shard], pair_labels[shard], key_labels, of_shard, positives))
        for shard, of_shard in zip(shards, owns, strict=True)
    )
    inputs = [v.requires_grad_() for v in case.vectors]
    z, keys, gates = inputs
    parts = [
        subspace_info_nce(
            *(z[shard], keys, gates[shard], labels[shard], pair_labels[shard], key_labels),
            **{**options, "self_index": of_shard, "num_positives": count},
        )
        for shard, of_shard in zip(shards, owns, strict=True)
    ]
    whole = subspace_info_nce(z, keys, gates, *case.labels, **{**options, "num_positives": None})
    summed = sum(parts, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(summed, whole, rtol=1e-10, atol=1e-12)
    for got, want in zip(torch.autograd.grad(summed, inputs), torch.autograd.grad(whole, inputs), strict=True):
        assert (got - want).norm() <= 1e-10 * want.norm() + 1e-11


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("positives", POSITIVES)
@pytest.mark.parametrize("value", [0.1, 0.01])
def test_learnt_temperature(
    similarity: Similarity, positives: Positives, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradient is the twin's and the numerical one; everything else is as with a number. In several blocks."""
    module = sys.modules["simlap.losses.forms.blocks"]  # the package's attribute of this name is the function
    monkeypatch.setattr(module, "_BLOCK_ENTRIES", {"cpu": 1})
    monkeypatch.setattr(module, "_BLOCK_ROWS", 4)
    case = make_case(11, 9, 5, classes=3)
    case.vectors[0][2] = 0.0
    options: dict[str, Any] = {"similarity": similarity, "positives": positives, "self_index": torch.arange(11) % 9}

    def loss(temperature: Tensor | float, function: Any = subspace_info_nce) -> Tensor:
        result: Tensor = function(*case.vectors, *case.labels, temperature=temperature, **options)
        return result

    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        temperature = torch.tensor(value, dtype=dtype, requires_grad=True)
        (got,) = torch.autograd.grad(3 * loss(temperature), temperature)
        (want,) = torch.autograd.grad(3 * loss(temperature, naive.subspace_info_nce), temperature)
        assert got.dtype == dtype
        torch.testing.assert_close(got, want, rtol=tolerance, atol=0)
    step = 1e-6 * value
    numerical = (loss(value + step) - loss(value - step)) / (2 * step)
    torch.testing.assert_close(got.double() / 3, numerical, rtol=1e-5, atol=0)
    for_number = value_and_gradients(subspace_info_nce, case, torch.float64, temperature=value, **options)
    temperature = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    for_tensor = value_and_gradients(subspace_info_nce, case, torch.float64, temperature=temperature, **options)
    torch.testing.assert_close(for_tensor, for_number, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradcheck(similarity: Similarity) -> None:
    case = make_case(5, 6, 4, classes=3)
    inputs = [v.requires_grad_() for v in (*case.vectors, torch.tensor(0.3, dtype=torch.float64))]

    def function(z: Tensor, keys: Tensor, gates: Tensor, temperature: Tensor) -> Tensor:
        return subspace_info_nce(z, keys, gates, *case.labels, similarity=similarity, temperature=temperature)

    assert torch.autograd.gradcheck(function, inputs)
