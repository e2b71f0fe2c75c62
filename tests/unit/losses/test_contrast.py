"""Edges of NT-Xent, SupCon and the one-to-one loss: degenerate inputs, precision, arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from simlap.losses import nt_xent, one_to_one, supcon

Loss = Callable[..., Tensor]
LOSSES: dict[Loss, str] = {nt_xent: "num_positives", supcon: "num_anchors", one_to_one: "num_terms"}
EACH = pytest.mark.parametrize("loss", LOSSES)


def make(loss: Loss, b: int = 6, n: int = 8, d: int = 5, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Four classes (or images) of two keys each, side by side; the anchors are the first keys' rows."""
    labels, own = torch.arange(n) // 2, torch.arange(n)
    vectors = {name: torch.randn(rows, d).to(dtype).requires_grad_() for name, rows in (("z", b), ("keys", n))}
    if loss is nt_xent:
        return {**vectors, "samples": labels[:b], "key_samples": labels, "self_index": own[:b]}
    if loss is supcon:
        return {**vectors, "pair_labels": labels[:b], "key_labels": labels, "self_index": own[:b]}
    slots = own % 2
    return {
        **vectors,
        "pair_classes": labels[:b],
        "key_classes": labels,
        "slots": slots[:b],
        "key_slots": slots,
    }


def classes_name(tensors: dict[str, Any]) -> str:
    return next(name for name in tensors if name in ("samples", "pair_labels", "pair_classes"))


def gradients(loss: Loss, tensors: dict[str, Any], **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of z, keys and a learnt temperature, all of them finite."""
    options = {"temperature": torch.tensor(0.1, requires_grad=True), **options}
    value = loss(**tensors, **options)
    inputs = {"z": tensors["z"], "keys": tensors["keys"]}
    if isinstance(options["temperature"], Tensor):
        inputs["temperature"] = options["temperature"]
    found = dict(zip(inputs, torch.autograd.grad(value, list(inputs.values())), strict=True))
    assert torch.isfinite(value)
    assert all(torch.isfinite(g).all() for g in found.values())
    return value.detach(), found


@EACH
@pytest.mark.parametrize("normaliser", [None, 0, 3.0, torch.tensor(0), torch.tensor(3)])
def test_nothing_positive_gives_a_connected_zero(loss: Loss, normaliser: float | Tensor | None) -> None:
    tensors = make(loss)
    tensors[classes_name(tensors)] = torch.full((6,), 7)
    value, found = gradients(loss, tensors, **{LOSSES[loss]: normaliser})
    assert value == 0
    assert all((g == 0).all() for g in found.values())


@EACH
def test_rows_without_positives_contribute_nothing(loss: Loss) -> None:
    """Neither to the loss nor to its normaliser nor, through a softmax of their own, to any gradient."""
    tensors = make(loss)
    tensors[classes_name(tensors)] = tensors[classes_name(tensors)].clone()
    tensors[classes_name(tensors)][2:4] = 7
    value, found = gradients(loss, tensors)
    kept = [0, 1, 4, 5]
    without = {name: x[kept] if len(x) == 6 else x for name, x in tensors.items()}
    without["z"] = without["z"].detach().requires_grad_()
    expected, expected_found = gradients(loss, without)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(found["keys"], expected_found["keys"])
    torch.testing.assert_close(found["z"][kept], expected_found["z"])
    assert (found["z"][2:4] == 0).all()


@EACH
def test_one_anchor_one_key_and_no_anchor(loss: Loss) -> None:
    assert gradients(loss, make(loss, b=1))[0] > 0
    value, found = gradients(loss, make(loss, b=1, n=1))  # nothing but the anchor itself
    assert value == 0
    assert all((g == 0).all() for g in found.values())
    value, found = gradients(loss, make(loss, b=0))
    assert value == 0
    assert (found["keys"] == 0).all()


@EACH
@pytest.mark.parametrize("name", ["z", "keys"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_rows_have_similarity_and_gradient_zero(loss: Loss, name: str, dtype: torch.dtype) -> None:
    tensors = make(loss, dtype=dtype)
    with torch.no_grad():
        tensors[name][1] = 0.0
    value, found = gradients(loss, tensors, temperature=0.01)
    assert value > 0
    assert (found[name][1] == 0).all()
    if name == "z":  # all similarities are 0: log of the number of keys in the softmax
        one = {k: v[1:2] if len(v) == 6 else v for k, v in tensors.items()}
        candidates = 4 if loss is one_to_one else 7
        torch.testing.assert_close(loss(**one, temperature=0.01), torch.tensor(candidates, dtype=dtype).log())


@EACH
@pytest.mark.parametrize("scaled", ["z", "keys"])
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_size_of_rows_does_not_matter(loss: Loss, scaled: str, scale: float) -> None:
    """In float32, where squares of these numbers do not exist."""
    tensors = make(loss)
    value, found = gradients(loss, tensors)
    other_value, other = gradients(loss, {**tensors, scaled: (tensors[scaled].detach() * scale).requires_grad_()})
    torch.testing.assert_close(other_value, value, rtol=1e-5, atol=0)
    torch.testing.assert_close(other[scaled] * scale, found[scaled], rtol=1e-4, atol=1e-6)


@EACH
def test_lowest_temperature_with_the_worst_keys(loss: Loss) -> None:
    """Positives opposite to the anchor, one negative equal to it: 100 - (-100), no overflow."""
    tensors = make(loss)
    with torch.no_grad():
        tensors["z"][0] = tensors["keys"][3] = torch.ones(5)
        tensors["keys"][1] = -torch.ones(5)
    one = {k: v[:1] if len(v) == 6 else v for k, v in tensors.items()}
    value, _ = gradients(loss, {**one, "z": one["z"].detach().requires_grad_()}, temperature=0.01)
    assert value.item() == pytest.approx(200.0, abs=1e-3)


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss: Loss, dtype: torch.dtype) -> None:
    """Also under autocast, whose matrix products would be half precision."""
    tensors = make(loss, dtype=dtype)
    wide = {k: v.detach().float().requires_grad_() if v.is_floating_point() else v for k, v in tensors.items()}
    expected, expected_found = gradients(loss, wide, temperature=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(**tensors, temperature=0.1)
    found = dict(zip(("z", "keys"), torch.autograd.grad(value, [tensors["z"], tensors["keys"]]), strict=True))
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    for name, g in found.items():
        assert g.dtype == dtype
        assert torch.equal(g, expected_found[name].to(dtype))


@EACH
def test_normaliser_scales(loss: Loss) -> None:
    tensors = make(loss)  # six anchors with one positive each
    for number in (18, 18.0, torch.tensor(18)):
        scaled = loss(**tensors, temperature=0.1, **{LOSSES[loss]: number})
        torch.testing.assert_close(scaled * 3, loss(**tensors, temperature=0.1))


def test_supcon_weighs_anchors_and_nt_xent_pairs_equally() -> None:
    """An anchor with two positives counts once in the one and twice in the other."""
    keys = torch.randn(5, 4)
    labels, own = torch.tensor([0, 0, 0, 1, 1]), torch.arange(5)

    def alone(loss: Loss, rows: list[int]) -> Tensor:
        return loss(keys[rows], keys, labels[rows], labels, own[rows], temperature=0.2)

    first, second = alone(supcon, [0, 1, 2]), alone(supcon, [3, 4])
    torch.testing.assert_close(alone(supcon, [0, 1, 2, 3, 4]), (3 * first + 2 * second) / 5)
    torch.testing.assert_close(alone(nt_xent, [0, 1, 2, 3, 4]), (6 * first + 2 * second) / 8)


def test_one_to_one_ignores_the_anchors_own_slot() -> None:
    tensors = make(one_to_one)
    before = one_to_one(**tensors, temperature=0.1)
    anchors_of_slot_0 = {k: v[:6:2] if len(v) == 6 else v for k, v in tensors.items()}
    alone = one_to_one(**anchors_of_slot_0, temperature=0.1)
    with torch.no_grad():
        tensors["keys"][::2] = 0.0  # slot 0
    torch.testing.assert_close(one_to_one(**anchors_of_slot_0, temperature=0.1), alone)
    assert one_to_one(**tensors, temperature=0.1) != before


@EACH
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("temperature", 0.0, "temperature must be positive"),
        ("temperature", torch.ones(2), "temperature must be a floating-point scalar"),
        ("keys", torch.zeros(8, 4), "z and keys must be"),
        ("z", torch.zeros(6, 5, dtype=torch.int64), "z must be floating point, not torch.int64"),
        ("classes", torch.zeros(7, dtype=torch.int64), r"must have shape \[6\], not \[7\]"),
        ("classes", torch.zeros(6), "must be integers, not torch.float32"),
        ("index", torch.full((6,), 8), "must be from 0 to 7, for 8 keys"),
        ("index", torch.zeros(6, dtype=torch.int32), "must be int64"),
        ("normaliser", -1, "must be finite and not negative, not -1"),
        ("normaliser", torch.ones(2), "must be a scalar"),
    ],
)
def test_wrong_arguments(loss: Loss, name: str, change: Any, message: str) -> None:
    tensors = {**make(loss), "temperature": 0.1}
    names = {
        "classes": classes_name(tensors),
        "index": "slots" if loss is one_to_one else "self_index",
        "normaliser": LOSSES[loss],
    }
    with pytest.raises(ValueError, match=message) as caught:
        loss(**{**tensors, names.get(name, name): change})
    assert names.get(name, name) in str(caught.value)
