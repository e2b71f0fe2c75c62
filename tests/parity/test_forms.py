"""Each form of the subspace InfoNCE, with a gate for each anchor or for each pair, against the naive float64 twin."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simlap.losses import subspace_info_nce
from simlap.losses.arguments import Positives, Similarity
from tests.parity import naive

SIMILARITIES: tuple[Similarity, Similarity] = ("cosine", "masked_dot")
POSITIVES: tuple[Positives, Positives] = ("pair", "either")
FORMS = ("plain", "chunked")
NAMES = ("z", "keys", "gates", "temperature")


class Case(NamedTuple):
    vectors: list[Tensor]  # z, keys, gates, and the temperature
    labels: list[Tensor]  # labels, pair labels, key labels
    options: dict[str, Any]


def make(
    b: int = 13,
    n: int = 11,
    d: int = 6,
    gates: int | None = 4,
    classes: int = 4,
    temperature: float = 0.1,
    seed: int = 0,
) -> Case:
    """Random; `gates`: how many the anchors share, None for one each."""
    g = torch.Generator().manual_seed(seed)
    z, keys = (torch.randn(rows, d, generator=g, dtype=torch.float64) for rows in (b, n))
    of_gates = torch.rand(b if gates is None else gates, d, generator=g, dtype=torch.float64)
    labels = [torch.randint(classes, (rows,), generator=g) for rows in (b, b, n)]
    index = None if gates is None else torch.randint(gates, (b,), generator=g)
    vectors = [z, keys, of_gates, torch.tensor(temperature, dtype=torch.float64)]
    return Case(vectors, labels, {"gate_index": index})


def twin(
    z: Tensor, keys: Tensor, gates: Tensor, *labels: Tensor, gate_index: Tensor | None = None, **options: Any
) -> Tensor:
    return naive.subspace_info_nce(z, keys, gates if gate_index is None else gates[gate_index], *labels, **options)


def outcome(function: Any, case: Case, dtype: torch.dtype, autocast: bool = False, **options: Any) -> list[Tensor]:
    """Value and the gradients in NAMES."""
    *vectors, temperature = (v.to(dtype).detach().requires_grad_() for v in case.vectors)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = function(*vectors, *case.labels, temperature=temperature, **case.options, **options)
    return [value.detach(), *torch.autograd.grad(value, [*vectors, temperature], materialize_grads=True)]


@pytest.fixture(params=["one block", "several"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of anchors, the last one short; gates are shared however small the batch."""
    monkeypatch.setattr(sys.modules["simlap.losses.subspace_info_nce"], "_SHARED_FROM", 0)
    if request.param == "several":
        monkeypatch.setattr(sys.modules["simlap.losses.forms.blocks"], "_BLOCK_ENTRIES", {"cpu": 1})
        monkeypatch.setattr(sys.modules["simlap.losses.forms.blocks"], "_BLOCK_ROWS", 4)
        monkeypatch.setattr(sys.modules["simlap.losses.forms.problem"], "_DISTINCT_FROM", 0)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("positives", POSITIVES)
@pytest.mark.parametrize("gates", [None, 1, 4, 12])
def test_equals_naive_twin(form: str, similarity: Similarity, positives: Positives, gates: int | None) -> None:
    """U = 12 of 13 anchors: too many to share; one for all: the open gate's case."""
    for temperature, own in ((0.1, None), (0.01, torch.arange(13) % 11)):
        case = make(gates=gates, temperature=temperature)
        options: dict[str, Any] = {"similarity": similarity, "positives": positives, "self_index": own}
        expected = outcome(twin, case, torch.float64, **options)
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 3e-6 if temperature == 0.1 else 5e-5)):
            found = outcome(subspace_info_nce, case, dtype, form=form, **options)
            for name, got, want in zip(("loss", *NAMES), found, expected, strict=True):
                assert (got.double() - want).norm() <= tolerance * want.norm(), name


@st.composite
def structured(draw: st.DrawFn) -> tuple[Case, dict[str, Any]]:
    """Few classes, shared gates of which some have no anchor, duplicated, zero and tiny rows."""
    b, n, d = draw(st.integers(2, 8)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    case = make(b, n, d, draw(st.integers(1, b // 2)), draw(st.integers(1, 4)), seed=draw(st.integers(0, 2**16)))
    for rows in case.vectors[:3]:
        for row in rows:
            row *= draw(st.sampled_from([1.0, 1.0, 1.0, 0.0, 1e-4]))
    case.vectors[3].fill_(draw(st.sampled_from([1.0, 0.1, 0.01])))
    case.labels[1] += draw(st.sampled_from([0, 0, 100]))  # 100: no positives
    options = {
        "similarity": draw(st.sampled_from(SIMILARITIES)),
        "positives": draw(st.sampled_from(POSITIVES)),
        "self_index": torch.arange(b) % n if draw(st.booleans()) else None,
        "num_positives": draw(st.sampled_from([None, 5, 12.0])),
        "form": draw(st.sampled_from(FORMS)),
    }
    return case, options


@given(structured())
def test_shared_gates_on_structured_inputs(drawn: tuple[Case, dict[str, Any]]) -> None:
    case, options = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["simlap.losses.subspace_info_nce"], "_SHARED_FROM", 0)
        found = outcome(subspace_info_nce, case, torch.float64, **options)
    del options["form"]
    expected = outcome(twin, case, torch.float64, **options)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-12)
    for got, want in zip(found[1:4], expected[1:4], strict=True):
        assert torch.isfinite(got).all()
        # row by row: rows of size 1e-4 have gradients 1e4 times as large, and in these the twin's exact zeros can be 1e-10
        assert ((got - want).norm(dim=1) <= 1e-10 * want.norm() + 1e-9 * want.norm(dim=1) + 1e-9).all()
    torch.testing.assert_close(found[4], expected[4], rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tiny_shared_gates_in_half_precision(form: str, similarity: Similarity, dtype: torch.dtype) -> None:
    """Gates of 1e-4, whose squares half precision does not have; each gradient comes back in its input's type."""
    case = make()
    case.vectors[2][1] = 1e-4
    case = case._replace(vectors=[v.to(dtype) for v in case.vectors])
    expected = outcome(subspace_info_nce, case, torch.float32, form=form, similarity=similarity)
    found = outcome(subspace_info_nce, case, dtype, autocast=True, form=form, similarity=similarity)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], expected[0])
    for got, want in zip(found[1:], expected[1:], strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, want.to(dtype))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_working_size_with_shared_gates(similarity: Similarity) -> None:
    """Single precision, several blocks, 55 gates: forms agree with each other in float64."""
    case = make(600, 500, 32, gates=55, classes=10)
    expected = outcome(subspace_info_nce, case, torch.float64, form="plain", similarity=similarity)
    found = outcome(subspace_info_nce, case, torch.float32, form="auto", similarity=similarity)
    for got, want in zip(found, expected, strict=True):
        assert (got.double() - want).norm() <= 3e-6 * want.norm()


def test_the_same_numbers_every_time() -> None:
    case = make(600, 500, 32, gates=55, classes=10)
    first, second = (outcome(subspace_info_nce, case, torch.float32, form="chunked") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.slow
def test_compiled_is_plain() -> None:
    """One program for all values of one shape, the edges among them: zero rows, no positives, no negatives."""
    cases = {
        "usual": make(),
        "zeros": make(),
        "no positives": make(),
        "no negatives": make(),
        "cold": make(temperature=0.01),
    }
    for rows in cases["zeros"].vectors[:3]:
        rows[1] = 0.0
    cases["no positives"].labels[1].fill_(100)
    cases["no negatives"].labels[0].fill_(0)
    cases["no negatives"].labels[2].fill_(0)
    for name, case in cases.items():
        expected = outcome(subspace_info_nce, case, torch.float32, form="plain")
        for got, want in zip(outcome(subspace_info_nce, case, torch.float32, form="compiled"), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=2e-4, atol=1e-5, msg=f"{name}: {got} {want}")


@pytest.mark.slow
def test_compiled_without_a_compiler() -> None:
    import torch._inductor.config as config

    torch.compiler.reset()
    # What monkeypatch undoes in torch's configuration stays hidden afterwards; torch's own patch puts it back.
    with (
        config.patch({"cpp.cxx": (None, "/nowhere/g++"), "force_disable_caches": True}),
        pytest.raises(
            RuntimeError, match=r"'compiled' of the subspace InfoNCE needs a working compiler.*auto, plain, chunked"
        ),
    ):
        outcome(subspace_info_nce, make(), torch.float32, form="compiled")
    torch.compiler.reset()
