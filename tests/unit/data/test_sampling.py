from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simlap import rng
from simlap.config.schema import DigitsData, PKSampling
from simlap.data.sampling import block_order, block_starts, by_class, check_sampling, permutation, pk, uniform
from simlap.errors import DataError


@st.composite
def pk_cases(draw: st.DrawFn) -> tuple[torch.Tensor, int, PKSampling]:
    """Shuffled labels of classes with at least K images each."""
    images = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(images, images + 5), min_size=2, max_size=7))
    classes = draw(st.integers(2, len(sizes)))
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    return (
        torch.tensor(draw(st.permutations(labels))),
        len(sizes),
        PKSampling(kind="pk", classes=classes, images=images),
    )


@given(pk_cases(), st.integers(0, 50))
def test_pk_holds_p_classes_with_k_different_images_each(case: tuple[torch.Tensor, int, PKSampling], step: int) -> None:
    labels, num_classes, sampling = case
    chosen = pk(by_class(labels, num_classes), sampling, seed=1, epoch=2)(step)
    assert len(chosen) == sampling.classes * sampling.images == len(set(chosen.tolist()))
    in_groups = labels[chosen].unflatten(0, (sampling.classes, sampling.images))
    assert (in_groups == in_groups[:, :1]).all()
    assert len(set(in_groups[:, 0].tolist())) == sampling.classes


def test_pk_draws_all_classes_and_images_alike() -> None:
    labels = torch.arange(40) % 4  # 10 images each
    draw = pk(by_class(labels, 4), PKSampling(kind="pk", classes=2, images=3), seed=0, epoch=0)
    counts = Counter(i for step in range(1000) for i in draw(step).tolist())
    assert set(counts) == set(range(40))
    assert all(abs(count - 150) < 60 for count in counts.values())  # five standard deviations


def test_pk_is_a_function_of_seed_epoch_and_step() -> None:
    images = by_class(torch.arange(40) % 4, 4)
    sampling = PKSampling(kind="pk", classes=2, images=3)
    assert torch.equal(pk(images, sampling, 0, 1)(5), pk(images, sampling, 0, 1)(5))
    draws = [pk(images, sampling, *key[:2])(key[2]).tolist() for key in ((0, 1, 5), (1, 1, 5), (0, 2, 5), (0, 1, 6))]
    assert len({tuple(draw) for draw in draws}) == 4


def test_pk_follows_its_written_rule() -> None:
    images = by_class(torch.tensor([1, 0, 1, 0, 2, 2, 1]), 3)
    assert [part.tolist() for part in images] == [[1, 3], [0, 2, 6], [4, 5]]
    generator = rng.generator(7, "pk", 3, 4)
    expected = []
    for label in torch.randperm(3, generator=generator)[:2].tolist():
        order = torch.randperm(len(images[label]), generator=generator)
        expected += images[label][order[:2]].tolist()
    assert pk(images, PKSampling(kind="pk", classes=2, images=2), 7, 3)(4).tolist() == expected


@given(st.integers(1, 30), st.integers(1, 4), st.integers(2, 20))
def test_uniform_is_a_permutation_with_repetition(num_images: int, repeats: int, batch_size: int) -> None:
    steps = num_images * repeats // batch_size
    draw = uniform(permutation(num_images, 3, 1), repeats, batch_size)
    drawn = [i for step in range(steps) for i in draw(step).tolist()]
    order = torch.randperm(num_images, generator=rng.generator(3, "order", 1))
    assert drawn == order.repeat_interleave(repeats).tolist()[: steps * batch_size]


@st.composite
def blocks(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """The first image of each block, and the number of images."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    return torch.tensor(sizes).cumsum(0) - torch.tensor(sizes), sum(sizes)


@given(blocks(), st.integers(1, 13), st.integers(0, 5))
def test_a_block_order_is_a_permutation_that_mixes_whole_blocks_run_by_run(
    case: tuple[torch.Tensor, int], window: int, epoch: int
) -> None:
    starts, num_images = case
    order = block_order(starts, num_images, window, 3, epoch)
    assert sorted(order.images.tolist()) == list(range(num_images))
    assert sorted(order.blocks.tolist()) == list(range(len(starts)))
    assert order.runs[[0, -1]].tolist() == [0, num_images]
    bounds = [*starts.tolist(), num_images]
    for number, run in enumerate(order.images.split(order.runs.diff().tolist())):
        inside = order.blocks[number * window : (number + 1) * window].tolist()
        assert 1 <= len(inside) <= window
        assert sorted(run.tolist()) == sorted(i for block in inside for i in range(bounds[block], bounds[block + 1]))
    if window >= len(starts):
        assert torch.equal(order.images, permutation(num_images, 3, epoch)), "nothing keeps to blocks then"


def test_runs_and_the_images_in_them_come_in_another_order_every_epoch() -> None:
    starts = torch.arange(0, 1000, 10)
    orders = [block_order(starts, 1000, 4, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order.blocks.tolist()) for order in orders}) == 3
    assert len({tuple(order.images.tolist()) for order in orders}) == 3
    again = block_order(starts, 1000, 4, 0, 1)
    assert torch.equal(again.images, orders[1].images)
    places = (orders[0].images // 10).float()  # a run's blocks come from everywhere, and are mixed
    assert places[:40].std() > 10
    assert (places[:40].diff() == 0).float().mean() < 0.5


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 30), st.integers(0, 9))
def test_blocks_are_cut_where_reading_can_begin(groups: list[int], block: int, missing: int) -> None:
    """`missing`: images at the end that are not in use, so that breaks lie behind the last one."""
    breaks = torch.tensor(groups).cumsum(0) - torch.tensor(groups)
    num_images = max(1, sum(groups) - missing)
    starts = block_starts(breaks, num_images, block)
    assert starts[0] == 0
    assert set(starts.tolist()) <= set(breaks.tolist())
    sizes = torch.diff(starts, append=torch.tensor([num_images]))
    assert (sizes > 0).all()
    assert (sizes[:-1] >= block).all()
    assert (sizes < block + 9)[:-1].all(), "no larger than it takes"


def _data(**fields: Any) -> DigitsData:
    return DigitsData(source="digits", **fields)


def test_a_class_too_small_or_too_few_classes_are_refused() -> None:
    sampling = PKSampling(kind="pk", classes=3, images=4)
    check_sampling(_data(sampling=sampling), 12, 14, [5, 4, 5])
    with pytest.raises(
        DataError, match=r"data\.sampling\.images: .*: 3 of class 'cat' \(got 4\).* Valid: 1 to 3"
    ) as error:
        check_sampling(_data(sampling=sampling), 12, 13, [5, 3, 5], ["dog", "cat", "eel"])
    assert (error.value.key, error.value.value, error.value.choices) == ("data.sampling.images", 4, ("1 to 3",))
    with pytest.raises(DataError, match="0 of class 1 ") as error:
        check_sampling(_data(sampling=sampling), 12, 10, [5, 0, 5])
    assert error.value.choices == ()
    with pytest.raises(DataError, match=r"more classes .* \(2\) \(got 3\)") as error:
        check_sampling(_data(sampling=sampling), 12, 10, [5, 5])
    assert (error.value.key, error.value.value, error.value.choices) == ("data.sampling.classes", 3, ("2 to 2",))


def test_a_batch_larger_than_an_epoch_is_refused() -> None:
    data = _data(repeated_augmentation=3)
    check_sampling(data, 150, 50, ())
    with pytest.raises(DataError, match=r"150 rows \(50 training images x .* 3\).*got 151") as error:
        check_sampling(data, 151, 50, ())
    assert (error.value.key, error.value.value) == ("train.batch_size", 151)
