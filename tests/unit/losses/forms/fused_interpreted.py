# mypy: disable-error-code="import-untyped"
"""The fused kernels under Triton's interpreter, on the CPU: run by test_fused.py in a process of its own.

The interpreter must be chosen before Triton is first imported, and other tests import it.
"""

from __future__ import annotations

import math
import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest
import torch
import triton.language as tl
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from simlap.losses import count_positives
from simlap.losses.forms.fused import fused_subspace_info_nce
from simlap.losses.forms.fused_plan import Plan

WHOLE = Plan(x=16, y=16, tile=32, chunk=0, warps=4, stages=1, stride=32)
IN_CHUNKS = Plan(x=16, y=32, tile=16, chunk=16, warps=4, stages=1, stride=32)
NAMES = ("z", "keys", "gates", "temperature")


def make(
    b: int = 17, n: int = 33, d: int = 13, classes: int = 4, pairs: int | None = None, seed: int = 0, **more: Any
) -> dict[str, Any]:
    """Random arguments; gates of `pairs` rows with gate_index, else one for each anchor."""
    generator = torch.Generator().manual_seed(seed)

    def randint(high: int, size: int) -> Tensor:
        return torch.randint(high, (size,), generator=generator)

    return {
        "z": torch.randn(b, d, generator=generator),
        "keys": torch.randn(n, d, generator=generator),
        "gates": torch.rand(pairs or b, d, generator=generator),
        "labels": randint(classes, b),
        "pair_labels": randint(classes, b),
        "key_labels": randint(classes, n),
        "gate_index": randint(pairs, b) if pairs else None,
        "self_index": None,
        "temperature": torch.tensor(0.1),
        "cosine": True,
        "either": False,
        **more,
    }


def naive(a: dict[str, Any], weight: Tensor) -> Tensor:
    """docs/method.md, steps 3 to 5, one anchor at a time."""
    total: Tensor = sum((a[name].sum() for name in NAMES), torch.tensor(0.0)) * 0.0
    for i in range(len(a["z"])):
        g = a["gates"][i if a["gate_index"] is None else a["gate_index"][i]]
        if a["cosine"]:
            c = F.cosine_similarity(g * a["z"][i], g * a["keys"], dim=1, eps=1e-300)
        else:
            c = (g * F.normalize(a["z"][i], dim=0, eps=1e-300)) @ (g * F.normalize(a["keys"], dim=1, eps=1e-300)).T
        logits = c / a["temperature"]
        own, pair = a["labels"][i], a["pair_labels"][i]
        negatives = [logits[k] for k, y in enumerate(a["key_labels"]) if y not in (own, pair)]
        for j, y in enumerate(a["key_labels"]):
            positive = y in (own, pair) if a["either"] else y == pair
            if positive and not (a["self_index"] is not None and a["self_index"][i] == j):
                total = total + (torch.logsumexp(torch.stack([logits[j], *negatives]), 0) - logits[j])
    return total * weight


def weight_of(a: dict[str, Any]) -> Tensor:
    count = count_positives(
        a["labels"], a["pair_labels"], a["key_labels"], a["self_index"], "either" if a["either"] else "pair"
    ).double()
    return torch.where(count > 0, 1.0 / count, 0.0)


def differentiate(loss: Tensor, a: dict[str, Any]) -> dict[str, Tensor]:
    return dict(zip(NAMES, torch.autograd.grad(loss, [a[name] for name in NAMES]), strict=True))


def fused(a: dict[str, Any], **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    a = {**a, **{name: a[name].detach().clone().requires_grad_() for name in NAMES}}
    options = {"precision": "ieee", "plan": WHOLE, **options}
    loss = fused_subspace_info_nce(**a, weight=weight_of(a), **options)
    found = differentiate(loss, a)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in found.values())
    assert all(found[name].dtype == a[name].dtype for name in NAMES)
    return loss.detach(), found


def oracle(a: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    a = {**a, **{name: a[name].detach().double().requires_grad_() for name in NAMES}}
    loss = naive(a, weight_of(a))
    return loss.detach(), differentiate(loss, a)


def assert_matches(a: dict[str, Any], tolerance: float = 5e-6, **options: Any) -> None:
    """Value and gradients, each within `tolerance` of its largest entry."""
    loss, found = fused(a, **options)
    expected_loss, expected = oracle(a)
    assert loss.double() == pytest.approx(expected_loss.item(), rel=tolerance, abs=tolerance)
    for name in NAMES:
        error = (found[name].double() - expected[name]).abs().max()
        assert error <= tolerance * expected[name].abs().max() + 1e-9, (name, error, expected[name].abs().max())


@settings(max_examples=10, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 36), st.integers(2, 32)),
    pairs=st.sampled_from([None, 1, 5]),
    classes=st.integers(1, 6),
    cosine=st.booleans(),
    either=st.booleans(),
    with_self=st.booleans(),
    plan=st.sampled_from([WHOLE, IN_CHUNKS]),
    splits=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_value_and_gradients(
    shape: tuple[int, int, int], pairs: int | None, classes: int, cosine: bool, either: bool, with_self: bool,
    plan: Plan, splits: int, seed: int,
) -> None:  # fmt: skip
    b, n, d = shape
    a = make(b, n, d, classes, pairs, seed, cosine=cosine, either=either)
    if with_self:
        a["self_index"] = torch.randint(n, (b,), generator=torch.Generator().manual_seed(seed))
    assert_matches(a, plan=plan, splits=splits)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("pairs", [None, 3])
def test_low_temperature(cosine: bool, pairs: int | None) -> None:
    assert_matches(make(pairs=pairs, cosine=cosine, temperature=torch.tensor(0.01)), 1e-4)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("pairs", [None, 3])
def test_zero_rows_have_similarity_and_gradient_zero(cosine: bool, pairs: int | None) -> None:
    a = make(b=5, n=20, pairs=pairs, cosine=cosine, temperature=torch.tensor(0.01))
    a["labels"], a["pair_labels"], a["key_labels"] = torch.zeros(5).long(), torch.ones(5).long(), torch.arange(20) % 4
    for name in ("z", "keys", "gates"):
        one = {**a, name: a[name].clone()}
        one[name][1] = 0.0
        loss, found = fused(one)
        assert (found[name][1] == 0).all()
        if name == "z":  # all its similarities are 0: every positive costs log(1 + 10 negatives)
            rest = {
                k: v[1:2] if k in ("z", "labels", "pair_labels", "gate_index") and v is not None else v
                for k, v in one.items()
            }
            if pairs is None:
                rest["gates"] = one["gates"][1:2]
            assert fused(rest)[0].item() == pytest.approx(math.log(11))
        assert loss > 0


@pytest.mark.parametrize("cosine", [True, False])
def test_gates_that_half_precision_cannot_square(cosine: bool) -> None:
    a = make(b=6, n=18, cosine=cosine)
    for name in ("z", "keys", "gates"):
        a[name] = a[name].half()
    a["gates"][0] = 1e-4
    wide = {k: v.float() if k in ("z", "keys", "gates") else v for k, v in a.items()}
    loss, found = fused(a)
    expected_loss, expected = fused(wide)
    torch.testing.assert_close(loss, expected_loss)
    for name in NAMES:
        torch.testing.assert_close(found[name], expected[name].to(found[name].dtype))


@pytest.mark.parametrize("pairs", [None, 3])
@pytest.mark.parametrize("either", [False, True])
def test_no_positives_and_no_negatives(either: bool, pairs: int | None) -> None:
    for key_labels in (torch.full((9,), 5), torch.arange(9) % 2):
        a = make(b=4, n=9, classes=2, pairs=pairs, either=either, key_labels=key_labels)
        a["labels"] = torch.arange(4) % 2
        a["pair_labels"] = 1 - a["labels"]
        loss, found = fused(a, splits=2)
        assert loss == 0
        assert all((g == 0).all() for g in found.values())


def test_one_dimension() -> None:
    """A cosine is +-1 there and its gradient 0, of which float32 leaves dust."""
    _, found = fused(make(b=3, n=5, d=1))
    assert all(found[name].abs().max() < 1e-5 for name in ("z", "keys", "gates"))


def test_no_anchor() -> None:
    loss, found = fused(make(b=0, n=3, pairs=None, gates=torch.zeros(0, 13)))
    assert loss == 0
    assert (found["keys"] == 0).all()


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("pairs", [None, 3])
def test_bfloat16(cosine: bool, pairs: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.9's interpreter multiplies the bits of bfloat16 as integers: its dot gets the numbers instead."""
    dot = InterpreterBuilder.create_dot

    def widened(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return dot(self, *(number(x) for x in (a, b)), *others)

    def number(x: Any) -> Any:
        if x.data.dtype != np.uint16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", widened)
    a = make(d=32, pairs=pairs, cosine=cosine)
    assert_matches(a, 0.03, precision="bf16")
    for name in ("z", "keys"):
        a[name] = a[name].bfloat16()
    assert_matches(a, 0.03, precision=None)  # by their dtype


@pytest.mark.parametrize("scaled", ["z", "keys", "gates"])
def test_cosine_does_not_depend_on_the_size_of_rows(scaled: str) -> None:
    a = make(b=5, n=12)
    loss, found = fused(a)
    for scale in (1e-25, 1e25):
        other, other_found = fused({**a, scaled: a[scaled] * scale})
        torch.testing.assert_close(other, loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(other_found[scaled] * scale, found[scaled], rtol=1e-4, atol=1e-6)


def test_without_gradient_and_with_a_number_as_temperature() -> None:
    a = make(pairs=3, either=True)
    loss, _ = fused(a, splits=2)
    a["temperature"] = 0.1
    torch.testing.assert_close(fused_subspace_info_nce(**a, weight=weight_of(a), precision="ieee", plan=WHOLE), loss)
    torch.testing.assert_close(
        fused_subspace_info_nce(**a, weight=weight_of(a), precision="ieee", plan=IN_CHUNKS), loss
    )


def test_more_gates_than_the_table_takes() -> None:
    a = make(b=20, n=18, pairs=130)
    assert_matches(a)


def test_labels_of_any_size() -> None:
    a = make()
    far = {**a, **{k: a[k] * 2**40 - 2**41 for k in ("labels", "pair_labels", "key_labels")}}
    assert torch.equal(fused(a)[0], fused(far)[0])
