"""NT-Xent, SupCon and the one-to-one loss: value and gradients against their naive float64 twins, and identities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simlap import losses
from simlap.losses import nt_xent, one_to_one, subspace_info_nce, supcon
from tests.parity import naive


class Kind(NamedTuple):
    """A loss, its twin, the count that normalises it, and the name of that argument."""

    loss: Callable[..., Tensor]
    twin: Callable[..., Tensor]
    counter: Callable[..., Tensor]
    normaliser: str


KINDS = {
    "nt_xent": Kind(nt_xent, naive.nt_xent, losses.count_view_pairs, "num_positives"),
    "supcon": Kind(supcon, naive.supcon, losses.count_anchors, "num_anchors"),
    "one_to_one": Kind(one_to_one, naive.one_to_one, losses.count_terms, "num_terms"),
}
EACH = pytest.mark.parametrize("kind", KINDS)


class Case(NamedTuple):
    z: Tensor
    keys: Tensor
    rows: tuple[Tensor, ...]
    """What follows z and keys; `of_rows` says which are the anchors'."""
    of_anchors: tuple[bool, ...]

    def shard(self, part: slice) -> Case:
        """Some of the anchors, all keys."""
        rows = tuple(x[part] if own else x for x, own in zip(self.rows, self.of_anchors, strict=True))
        return Case(self.z[part], self.keys, rows, self.of_anchors)


def make_case(kind: str, b: int, n: int, d: int, classes: int, seed: int = 0) -> Case:
    """Float64 anchors of random classes among random keys; all anchors are among the keys where b <= n."""
    g = torch.Generator().manual_seed(seed)
    z, keys = (torch.randn(rows, d, generator=g, dtype=torch.float64) for rows in (b, n))
    own = torch.arange(b) % n
    labels, key_labels = (torch.randint(classes, (rows,), generator=g) for rows in (b, n))
    if kind != "one_to_one":
        return Case(z, keys, (labels, key_labels, own), (True, False, True))
    key_slots = _numbered(key_labels)
    return Case(z, keys, (labels, key_labels, key_slots[own], key_slots), (True, False, True, False))


def _numbered(classes: Tensor) -> Tensor:
    """Each key's number among those of its class."""
    return torch.tensor([int((classes[:j] == classes[j]).sum()) for j in range(len(classes))])


def value_and_gradients(
    function: Callable[..., Tensor], case: Case, dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[Tensor, list[Tensor]]:
    """Of z, keys, and the temperature where it is a tensor."""
    inputs = [case.z.detach().to(dtype).requires_grad_(), case.keys.detach().to(dtype).requires_grad_()]
    temperature = options["temperature"]
    learnt = [temperature] if isinstance(temperature, Tensor) else []
    value = function(*inputs, *case.rows, **options)
    return value.detach(), list(torch.autograd.grad(value, [*inputs, *learnt]))


@EACH
@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("normaliser", [None, 37.5])
def test_equals_naive_twin(kind: str, temperature: float, normaliser: float | None) -> None:
    loss, twin, _, name = KINDS[kind]
    case = make_case(kind, 10, 13, 7, classes=4)
    case = case._replace(z=case.z.float().double(), keys=case.keys.float().double())
    learnt = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    for value in (temperature, learnt):
        options: dict[str, Any] = {"temperature": value, name: normaliser}
        expected, expected_gradients = value_and_gradients(twin, case, **options)
        for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-5 if temperature == 0.01 else 3e-6)):
            got, gradients = value_and_gradients(loss, case, dtype, **options)
            assert got.dtype == dtype
            for x, want in zip((got, *gradients), (expected, *expected_gradients), strict=True):
                assert (x.double() - want).norm() <= tolerance * want.norm()


@st.composite
def structured(draw: st.DrawFn) -> tuple[str, Case, dict[str, Any]]:
    """B != N, few classes or absent ones, duplicated, zero and tiny rows, low temperatures, foreign normalisers."""
    kind = draw(st.sampled_from(list(KINDS)))
    b, n, d = (draw(st.integers(1, 6)) for _ in range(3))
    case = make_case(kind, b, n, d, draw(st.integers(1, 4)), seed=draw(st.integers(0, 2**16)))
    for row in (*case.z, *case.keys):
        row *= draw(st.sampled_from([1.0, 1.0, 1.0, 0.0, 1e-4, 1e200]))
    if draw(st.booleans()):
        case.keys[0] = case.z[0]
    if draw(st.booleans()):
        case.rows[0][draw(st.integers(0, b - 1))] = 100  # no key has it
    options = {
        "temperature": draw(st.sampled_from([1.0, 0.1, 0.01])),
        KINDS[kind].normaliser: draw(st.sampled_from([None, 0, 5, 12.0])),
    }
    return kind, case, options


@given(structured())
def test_equals_naive_twin_on_structured_inputs(drawn: tuple[str, Case, dict[str, Any]]) -> None:
    kind, case, options = drawn
    value, gradients = value_and_gradients(KINDS[kind].loss, case, **options)
    largest = [x.abs().amax(1, keepdim=True) for x in (case.z, case.keys)]
    safe = [x / m.masked_fill(m < 1, 1.0) for x, m in zip((case.z, case.keys), largest, strict=True)]
    # the twin squares its rows, so it gets the largest of them scaled down: cosines do not notice
    expected, expected_gradients = value_and_gradients(
        KINDS[kind].twin, case._replace(z=safe[0], keys=safe[1]), **options
    )
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-11)
    # row by row: rows of size 1e-4 have gradients 1e4 times as large, and in these the twin's exact zeros can be 1e-10
    for got, want, m in zip(gradients, expected_gradients, largest, strict=True):
        assert torch.isfinite(got).all()
        scaled = got * m.clamp(min=1.0)
        assert ((scaled - want).norm(dim=1) <= 1e-10 * want.norm() + 1e-9 * want.norm(dim=1) + 1e-9).all()


@given(structured(), st.integers(2, 3))
def test_workers_add_up_to_one_process(drawn: tuple[str, Case, dict[str, Any]], workers: int) -> None:
    """Each has every W-th anchor, all keys and the global normaliser, which is the sum of the workers' counts."""
    kind, case, options = drawn
    loss, _, counter, name = KINDS[kind]
    case = Case(case.z.requires_grad_(), case.keys.requires_grad_(), case.rows, case.of_anchors)
    shards = [case.shard(slice(rank, None, workers)) for rank in range(workers)]
    total = sum(int(counter(*shard.rows)) for shard in shards)
    assert total == counter(*case.rows)
    parts = [loss(s.z, s.keys, *s.rows, **{**options, name: total}) for s in shards]
    summed = sum(parts, torch.zeros((), dtype=torch.float64))
    whole = loss(case.z, case.keys, *case.rows, **{**options, name: None})
    torch.testing.assert_close(summed, whole, rtol=1e-10, atol=1e-11)
    inputs = (case.z, case.keys)
    for got, want in zip(torch.autograd.grad(summed, inputs), torch.autograd.grad(whole, inputs), strict=True):
        assert (got - want).norm() <= 1e-10 * want.norm() + 1e-11


@EACH
def test_gradcheck(kind: str) -> None:
    case = make_case(kind, 5, 6, 4, classes=3)
    temperature = torch.tensor(0.3, dtype=torch.float64)

    def function(z: Tensor, keys: Tensor, temperature: Tensor) -> Tensor:
        return KINDS[kind].loss(z, keys, *case.rows, temperature=temperature)

    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in (case.z, case.keys, temperature)])


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_with_two_views_three_losses_are_one(temperature: float) -> None:
    """One positive for each anchor, and all keys but the two are negatives: NT-Xent, SupCon with the images as classes,
    and the subspace InfoNCE with open gates and the own column dropped."""
    z = torch.randn(12, 5, dtype=torch.float64)
    samples, own = torch.arange(6).repeat_interleave(2), torch.arange(12)
    case = Case(z, z, (samples, samples, own), (True, False, True))
    expected, gradients = value_and_gradients(nt_xent, case, temperature=temperature)
    for_supcon = value_and_gradients(supcon, case, temperature=temperature)
    torch.testing.assert_close(for_supcon, (expected, gradients), rtol=1e-10, atol=1e-12)

    def multi_positive(
        z: Tensor, keys: Tensor, labels: Tensor, key_labels: Tensor, own: Tensor, **options: Any
    ) -> Tensor:
        gates = torch.ones_like(z)
        return subspace_info_nce(z, keys, gates, labels, labels, key_labels, self_index=own, **options)

    for_simlap = value_and_gradients(multi_positive, case, temperature=temperature)
    torch.testing.assert_close(for_simlap, (expected, gradients), rtol=1e-9, atol=1e-12)


def test_two_views_are_the_cross_entropy_of_the_other_view() -> None:
    """The usual form: rows of the similarity matrix without its diagonal, the other view as the class."""
    z = torch.randn(8, 5, dtype=torch.float64)
    unit = torch.nn.functional.normalize(z)
    logits = (unit @ unit.T / 0.2).fill_diagonal_(-torch.inf)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(8) ^ 1)
    own = torch.arange(8)
    torch.testing.assert_close(nt_xent(z, z, own // 2, own // 2, own, temperature=0.2), expected)


def test_with_two_images_of_each_class_one_to_one_is_the_cross_entropy_between_the_slots() -> None:
    """As in CLIP: P keys, one of them right, both ways."""
    first, second = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    units = [torch.nn.functional.normalize(x) for x in (first, second)]
    logits = units[0] @ units[1].T / 0.2
    target = torch.arange(4)
    expected = (
        torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
    ) / 2
    z, classes, slots = torch.cat([first, second]), target.repeat(2), torch.arange(2).repeat_interleave(4)
    torch.testing.assert_close(one_to_one(z, z, classes, classes, slots, slots, temperature=0.2), expected)


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@EACH
def test_single_precision_at_working_size(kind: str, temperature: float) -> None:
    """Against our own float64, which the tests around this one tie to the twin."""
    case = make_case(kind, 256, 256, 64, classes=32)
    case = case._replace(z=case.z.float().double(), keys=case.keys.float().double())
    value, gradients = value_and_gradients(KINDS[kind].loss, case, torch.float32, temperature=temperature)
    expected, expected_gradients = value_and_gradients(KINDS[kind].loss, case, temperature=temperature)
    for got, want in zip((value, *gradients), (expected, *expected_gradients), strict=True):
        assert (got.double() - want).norm() <= (3e-6 if temperature == 0.1 else 2e-5) * want.norm()
