from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from simlap import rng
from simlap.config.schema import Augment, DigitsData
from simlap.data import Augmenter, Batch, DataInfo, ImageSet, TrainLoader, check_batch, eval_batches, pair_labels
from simlap.data.loader import _STEPS_DRAWN
from simlap.errors import ConfigError, DataError

AUGMENT = Augment(rotate=10.0, translate=0.1, brightness=0.2, contrast=0.2, erase=0.3)
OFF = Augment(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
MEAN, STD = (0.3,), (0.4,)


def _set(n: int = 50) -> ImageSet:
    """Images that tell their own number: pixel (0, 0) of image i is i."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)
    images[:, 0, 0, 0] = torch.arange(n)
    return ImageSet(images, torch.arange(n) % 5)


def _loader(images: ImageSet | None = None, augment: Augment = AUGMENT, ra: int = 3, **fields: Any) -> TrainLoader:
    data = DigitsData(source="digits", augment=augment, repeated_augmentation=ra)
    fields = {"num_classes": 5, "batch_size": 32, "pairs": "arbitrary", "seed": 3, **fields}
    return TrainLoader(images or _set(), data=data, mean=MEAN, std=STD, **fields)


def _assert_equal(one: Batch, other: Batch) -> None:
    assert one.global_size == other.global_size
    for name in ("images", "labels", "pair_labels", "rows"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def _numbers(images: Tensor) -> list[int]:
    """Which images an unaugmented batch holds."""
    return ((images[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255).round().int().tolist()


def test_an_epoch_is_one_permutation_each_image_repeated_in_a_row() -> None:
    loader = _loader(augment=OFF, batch_size=30)
    assert loader.steps_per_epoch == 5
    numbers = [n for batch in loader.batches(0) for n in _numbers(batch.images)]
    assert len(numbers) == 150
    assert Counter(numbers) == dict.fromkeys(range(50), 3)
    assert numbers[::3] == numbers[1::3] == numbers[2::3]
    assert numbers[::3] != sorted(numbers[::3])
    assert numbers != [n for batch in loader.batches(1) for n in _numbers(batch.images)]


def test_labels_belong_to_the_images() -> None:
    for batch in _loader(augment=OFF).batches(2):
        assert batch.labels.tolist() == [n % 5 for n in _numbers(batch.images)]
        assert batch.rows.tolist() == list(range(32))
        assert batch.global_size == 32


def test_the_last_partial_batch_is_dropped() -> None:
    loader = _loader(batch_size=32)
    assert loader.steps_per_epoch == 150 // 32 == len(list(loader.batches(0)))


def test_every_row_is_what_its_keys_say() -> None:
    """The rules written out: order, copies, augmentation, pairs."""
    images = _set()
    loader = _loader(images)
    order = torch.randperm(50, generator=rng.generator(3, "order", 4))
    positions = torch.arange(2 * 32, 3 * 32)
    samples, copies = order[positions // 3], positions % 3
    augmenter = Augmenter(AUGMENT, 8, MEAN, STD)
    batch = list(loader.batches(4))[2]
    assert torch.equal(batch.images, augmenter(images.images[samples], rng.key(3, "augment", 4), samples, copies))
    expected = pair_labels("arbitrary", images.labels[samples], 5, rng.generator(3, "pairs", 4, 2))
    assert torch.equal(batch.pair_labels, expected)


@pytest.mark.parametrize("batch_size", [4, 32])
@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_resuming_in_mid_epoch_gives_the_tail(batch_size: int, start: int) -> None:
    loader = _loader(batch_size=batch_size)
    whole, tail = list(loader.batches(1)), list(_loader(batch_size=batch_size).batches(1, start))
    assert len(tail) == len(whole) - start
    for one, other in zip(whole[start:], tail, strict=True):
        _assert_equal(one, other)


def test_resuming_at_the_end_gives_nothing() -> None:
    loader = _loader()
    assert list(loader.batches(0, loader.steps_per_epoch)) == []


def test_more_steps_than_are_drawn_at_once() -> None:
    loader = _loader(batch_size=4)
    assert loader.steps_per_epoch > _STEPS_DRAWN
    whole = list(loader.batches(0))
    assert len(whole) == loader.steps_per_epoch
    _assert_equal(whole[_STEPS_DRAWN + 2], next(loader.batches(0, _STEPS_DRAWN + 2)))


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize(
    ("pairs", "batch_size", "ra"), [("arbitrary", 32, 3), ("distinct", 31, 1), ("identical", 7, 2)]
)
def test_workers_interleaved_are_the_single_process(world_size: int, pairs: str, batch_size: int, ra: int) -> None:
    fields: dict[str, Any] = {"pairs": pairs, "batch_size": batch_size, "ra": ra}
    single = _loader(**fields)
    workers = [_loader(**fields, rank=rank, world_size=world_size) for rank in range(world_size)]
    for whole, *parts in zip(single.batches(1), *(worker.batches(1) for worker in workers), strict=True):
        for rank, part in enumerate(parts):
            assert part.global_size == batch_size
            assert part.rows.tolist() == list(range(rank, batch_size, world_size))
            for name in ("images", "labels", "pair_labels"):
                assert torch.equal(getattr(part, name), getattr(whole, name)[rank::world_size]), (name, rank)


def test_arms_with_one_seed_share_order_and_augmentation() -> None:
    one, other = next(_loader(pairs="arbitrary").batches(0)), next(_loader(pairs="distinct").batches(0))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.labels, other.labels)
    assert not torch.equal(one.pair_labels, other.pair_labels)
    assert not torch.equal(one.images, next(_loader(seed=4).batches(0)).images)


def test_no_augmentation_at_all() -> None:
    batch = next(_loader(augment=OFF, ra=1).batches(0))
    assert batch.images.shape == (32, 1, 8, 8)
    assert batch.images.dtype == torch.float32


def test_a_batch_larger_than_an_epoch_is_refused() -> None:
    assert _loader(batch_size=150).steps_per_epoch == 1
    with pytest.raises(DataError, match=r"train.batch_size: .*150 rows \(50 training images x .* 3\).*got 151"):
        _loader(batch_size=151)
    info = DataInfo(num_train=50, num_val=5, num_test=5, channels=1, class_names=("a", "b"), fingerprint="")
    data = DigitsData(source="digits", repeated_augmentation=3)
    check_batch(info, data, 150)
    with pytest.raises(DataError, match=r"train\.batch_size: .*got 151"):
        check_batch(info, data, 151)


def test_impossible_workers_and_pairs_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"resources\.workers: more workers.*got 40"):
        _loader(world_size=40)
    with pytest.raises(ValueError, match="rank"):
        _loader(rank=2, world_size=2)
    with pytest.raises(DataError, match=r"method\.pairs: .*distinct"):
        _loader(num_classes=1, pairs="distinct")


def test_eval_batches_are_all_images_in_order() -> None:
    images = _set()
    batches = list(eval_batches(images, MEAN, STD, batch_size=16))
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 2]
    assert torch.equal(torch.cat([labels for _, labels in batches]), images.labels)
    pixels = (torch.cat([x for x, _ in batches]) * STD[0] + MEAN[0]) * 255
    torch.testing.assert_close(pixels, images.images.float(), rtol=0, atol=1e-3)
