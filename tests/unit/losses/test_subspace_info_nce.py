"""Edges of the subspace InfoNCE: degenerate inputs, precision, arguments."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from simlap import losses
from simlap.losses.arguments import Similarity
from simlap.losses.subspace_info_nce import Form

Tensors = dict[str, Any]
subspace_info_nce = losses.subspace_info_nce
BOTH: tuple[Similarity, Similarity] = ("cosine", "masked_dot")


@pytest.fixture(autouse=True, params=["plain", "chunked"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Form:
    """Every form passes every test."""
    name: Form = request.param
    monkeypatch.setitem(globals(), "subspace_info_nce", partial(losses.subspace_info_nce, form=name))
    return name


def make(b: int = 6, n: int = 8, d: int = 5, dtype: torch.dtype = torch.float32) -> Tensors:
    """Anchors of classes 0, 1 with pairs of classes 1, 0; keys of classes 0 to 3 in turn."""
    labels = torch.arange(b) % 2
    return {
        "z": torch.randn(b, d).to(dtype).requires_grad_(),
        "keys": torch.randn(n, d).to(dtype).requires_grad_(),
        "gates": torch.rand(b, d).to(dtype).requires_grad_(),
        "labels": labels,
        "pair_labels": 1 - labels,
        "key_labels": torch.arange(n) % 4,
    }


def set_row(tensors: Tensors, name: str, row: int, value: float) -> None:
    with torch.no_grad():
        tensors[name][row] = value


def gradients(tensors: Tensors, autocast: bool = False, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of z, keys, gates, all of them finite."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = subspace_info_nce(**tensors, **options)
    names = ("z", "keys", "gates")
    found = dict(zip(names, torch.autograd.grad(loss, [tensors[name] for name in names]), strict=True))
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in found.values())
    return loss.detach(), found


@pytest.mark.parametrize("similarity", BOTH)
@pytest.mark.parametrize("num_positives", [None, 0, 3.0, torch.tensor(0), torch.tensor(3)])
def test_no_positives_gives_a_connected_zero(similarity: Similarity, num_positives: float | Tensor | None) -> None:
    tensors = make()
    tensors["pair_labels"] = torch.full_like(tensors["labels"], 7)
    loss, found = gradients(tensors, similarity=similarity, num_positives=num_positives)
    assert loss == 0
    assert all((g == 0).all() for g in found.values())


@pytest.mark.parametrize("similarity", BOTH)
def test_no_negatives_gives_zero(similarity: Similarity) -> None:
    """-log(e^l / e^l) = 0."""
    tensors = make()
    tensors["key_labels"] = torch.arange(8) % 2
    loss, found = gradients(tensors, similarity=similarity)
    assert loss == 0
    assert all((g == 0).all() for g in found.values())


@pytest.mark.parametrize("similarity", BOTH)
def test_one_anchor_and_no_anchor(similarity: Similarity) -> None:
    loss, _ = gradients(make(b=1), similarity=similarity)
    assert loss > 0
    loss, found = gradients(make(b=0), similarity=similarity)
    assert loss == 0
    assert (found["keys"] == 0).all()


@pytest.mark.parametrize("similarity", BOTH)
@pytest.mark.parametrize("name", ["z", "keys", "gates"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_rows_have_similarity_and_gradient_zero(similarity: Similarity, name: str, dtype: torch.dtype) -> None:
    tensors = make(dtype=dtype)
    set_row(tensors, name, 1, 0.0)
    loss, found = gradients(tensors, similarity=similarity, temperature=0.01)
    assert (found[name][1] == 0).all()
    if name != "keys":  # all similarities of that anchor are 0: every positive costs log(1 + number of negatives)
        one = {k: v[1:2] if len(v) == 6 else v for k, v in tensors.items()}
        assert subspace_info_nce(**one, similarity=similarity).item() == pytest.approx(torch.tensor(5.0).log().item())
    assert loss > 0


def test_zero_norm_in_the_subspace_alone() -> None:
    """z and gate are not zero, their product is."""
    tensors = make()
    with torch.no_grad():
        tensors["gates"][0] = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])
        tensors["z"][0] = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0])
        tensors["keys"][3] = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0])
    _, found = gradients(tensors)
    assert (found["z"][0] == 0).all()
    assert (found["gates"][0] == 0).all()


@pytest.mark.parametrize("scaled", ["z", "keys", "gates"])
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_cosine_does_not_depend_on_the_size_of_rows(scaled: str, scale: float) -> None:
    """In float32, where squares of these numbers do not exist."""
    tensors = make()
    loss, found = gradients(tensors)
    other = {k: (v.detach() * scale).requires_grad_() if k == scaled else v for k, v in tensors.items()}
    other_loss, other_found = gradients(other)
    torch.testing.assert_close(other_loss, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(other_found[scaled] * scale, found[scaled], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("similarity", BOTH)
def test_rows_that_span_all_magnitudes_stay_finite(similarity: Similarity) -> None:
    """Entries from 1e-30 to 1e20 within a row: the answer may be coarse, never NaN."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        tensors = make()
        for name in ("z", "keys", "gates"):
            powers = torch.rand(tensors[name].shape, generator=generator) * (30 if name == "gates" else 50) - 30
            tensors[name] = (tensors[name].detach() * 10**powers).requires_grad_()
        loss = subspace_info_nce(**tensors, similarity=similarity, temperature=0.01)
        assert torch.isfinite(loss)
        for g in torch.autograd.grad(loss, [tensors["z"], tensors["keys"], tensors["gates"]]):
            assert not g.isnan().any()


@pytest.mark.parametrize("scaled", ["z", "keys"])
def test_masked_dot_with_tiny_vectors(scaled: str) -> None:
    tensors = make()
    loss, _ = gradients(tensors, similarity="masked_dot")
    other = {k: (v.detach() * 1e-25).requires_grad_() if k == scaled else v for k, v in tensors.items()}
    other_loss, _ = gradients(other, similarity="masked_dot")
    torch.testing.assert_close(other_loss, loss, rtol=1e-5, atol=0)


def test_size_of_gates_counts_in_masked_dot() -> None:
    tensors = make()
    halved = {**tensors, "gates": (tensors["gates"].detach() / 2).requires_grad_()}
    quarter_logits = subspace_info_nce(**halved, similarity="masked_dot", temperature=0.1)
    torch.testing.assert_close(quarter_logits, subspace_info_nce(**tensors, similarity="masked_dot", temperature=0.4))


@pytest.mark.parametrize("similarity", BOTH)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(similarity: Similarity, dtype: torch.dtype) -> None:
    """Also under autocast, and with gates whose squares half precision does not have (1e-8)."""
    tensors = make(dtype=dtype)
    set_row(tensors, "gates", 0, 1e-4)
    wide = {k: v.detach().float().requires_grad_() if v.is_floating_point() else v for k, v in tensors.items()}
    expected, expected_gradients = gradients(wide, similarity=similarity, temperature=0.1)
    loss, found = gradients(tensors, autocast=True, similarity=similarity, temperature=0.1)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    for name, g in found.items():
        assert g.dtype == dtype
        assert torch.equal(g, expected_gradients[name].to(dtype))


def test_dtypes_may_differ() -> None:
    tensors = make()
    tensors["gates"] = tensors["gates"].detach().double().requires_grad_()
    loss, found = gradients(tensors)
    assert loss.dtype == torch.float64
    assert [g.dtype for g in found.values()] == [torch.float32, torch.float32, torch.float64]


def test_gradient_is_scaled_and_goes_where_it_is_wanted() -> None:
    tensors = make()
    _, found = gradients(tensors)
    tensors["gates"] = tensors["gates"].detach()
    (3 * subspace_info_nce(**tensors)).backward()
    torch.testing.assert_close(tensors["z"].grad, 3 * found["z"])
    torch.testing.assert_close(tensors["keys"].grad, 3 * found["keys"])
    with torch.no_grad():
        assert not subspace_info_nce(**tensors).requires_grad


def test_anchors_that_are_the_keys() -> None:
    """One tensor in both roles gets the sum of both gradients."""
    tensors = make(b=8)
    separate = {**tensors, "keys": tensors["z"].detach().clone().requires_grad_()}
    _, found = gradients(separate)
    (g,) = torch.autograd.grad(subspace_info_nce(**{**tensors, "keys": tensors["z"]}), tensors["z"])
    torch.testing.assert_close(g, found["z"] + found["keys"])


def test_either_adds_the_keys_of_the_own_class() -> None:
    """To those of the pair class, with the same negatives; where both classes are one nothing changes."""
    tensors = make()
    swapped = {**tensors, "labels": tensors["pair_labels"], "pair_labels": tensors["labels"]}
    either = subspace_info_nce(**tensors, positives="either", num_positives=1)
    pair, own = (subspace_info_nce(**x, num_positives=1) for x in (tensors, swapped))
    torch.testing.assert_close(either, pair + own)
    same = {**tensors, "pair_labels": tensors["labels"]}
    assert torch.equal(subspace_info_nce(**same, positives="either"), subspace_info_nce(**same))


@pytest.mark.parametrize("similarity", BOTH)
def test_learnt_temperature_of_a_batch_without_positives(similarity: Similarity) -> None:
    tensors = make()
    tensors["pair_labels"] = torch.full_like(tensors["labels"], 7)
    temperature = torch.tensor(0.1, requires_grad=True)
    (g,) = torch.autograd.grad(
        subspace_info_nce(**tensors, similarity=similarity, temperature=temperature), temperature
    )
    assert g == 0


def test_only_the_temperature_may_learn() -> None:
    tensors = {k: v.detach() for k, v in make().items()}
    temperature = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    loss = subspace_info_nce(**tensors, temperature=temperature)
    assert loss.dtype == torch.float32
    loss.backward()
    assert temperature.grad is not None
    assert temperature.grad.dtype == torch.float64
    assert temperature.grad != 0


def test_own_column_is_dropped() -> None:
    tensors = make(b=8)
    tensors.update(pair_labels=tensors["labels"], key_labels=tensors["labels"].clone())
    tensors["key_labels"][6:] = 3  # some negatives
    own = torch.arange(8)
    dropped = subspace_info_nce(**tensors, self_index=own, num_positives=1)
    kept = subspace_info_nce(**tensors, num_positives=1)
    own_terms = []
    for i in range(6):
        negatives = (tensors["key_labels"] != tensors["labels"][i]).nonzero().flatten()
        columns = torch.cat([torch.tensor([i]), negatives])
        one = {k: v[columns] if k.startswith("key") else v[i : i + 1] for k, v in tensors.items()}
        own_terms.append(subspace_info_nce(**one))
    torch.testing.assert_close(dropped + sum(own_terms), kept)


@pytest.mark.parametrize("kind", [int, float, torch.tensor])
def test_normaliser(kind: Any) -> None:
    tensors = make()
    local = 6 * 2
    torch.testing.assert_close(
        subspace_info_nce(**tensors, num_positives=kind(3 * local)) * 3, subspace_info_nce(**tensors)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"similarity": "dot"}, "one of cosine, masked_dot"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": torch.tensor(-0.1)}, "temperature must be positive and finite, not -0.1"),
        ({"temperature": torch.tensor([0.1])}, r"temperature must be a floating-point scalar, not .* shape \[1\]"),
        ({"temperature": torch.tensor(1)}, "temperature must be a floating-point scalar, not torch.int64"),
        ({"positives": "both"}, "positives must be one of pair, either, not 'both'"),
        ({"z": torch.zeros(5)}, r"z and keys .*\[5\]"),
        ({"keys": torch.zeros(8, 4)}, r"z and keys"),
        ({"keys": torch.zeros(0, 5)}, r"z and keys"),
        ({"gates": torch.zeros(6, 1)}, r"gates must have shape \[6, 5\], not \[6, 1\]"),
        ({"gates": torch.zeros(6, 5, dtype=torch.int64)}, "gates must be floating point"),
        ({"labels": torch.zeros(7, dtype=torch.int64)}, "labels must have shape"),
        ({"pair_labels": torch.zeros(6)}, "pair_labels must be integers"),
        ({"key_labels": torch.zeros(6, dtype=torch.int64)}, r"key_labels must have shape \[8\]"),
        ({"self_index": torch.full((6,), 8)}, "self_index must be from 0 to 7, for 8 keys, not .8, 8"),
        ({"self_index": torch.full((6,), -1)}, "self_index must be from 0 to 7"),
        ({"self_index": torch.zeros(6, dtype=torch.int32)}, "self_index must be int64"),
        ({"num_positives": -1}, "num_positives"),
        ({"num_positives": torch.ones(2)}, "num_positives"),
        ({"gate_index": torch.zeros(6, dtype=torch.int32)}, "gate_index must be int64"),
        ({"gate_index": torch.zeros(5, dtype=torch.int64)}, r"gate_index must have shape \[6\], not \[5\]"),
        ({"gate_index": torch.full((6,), 6)}, "gate_index must be from 0 to 5, for 6 gates, not .6, 6"),
        (
            {"gate_index": torch.zeros(6, dtype=torch.int64), "gates": torch.zeros(0, 5)},
            r"gates must have shape \[U, 5\]",
        ),
        ({"gate_index": torch.zeros(6, dtype=torch.int64), "gates": torch.zeros(2, 4)}, r"with U > 0, not \[2, 4\]"),
        ({"form": "quick"}, "form must be one of auto, plain, compiled, chunked, fused, not 'quick'"),
        ({"form": "fused"}, "form 'fused' needs Triton and a CUDA device, not cpu"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        subspace_info_nce(**{**make(), **change})
