from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from simlap import rng
from simlap.config.schema import Augment, DigitsData, PKSampling
from simlap.data.augment import apply_mix, build_augmenter, draw_mix
from simlap.data.batch import Batch
from simlap.data.loader import _STEPS_DRAWN, TrainLoader, check_batch
from simlap.data.pairs import pair_labels
from simlap.data.splits import DataInfo, ImageSet, load_splits
from simlap.errors import ConfigError, DataError
from tests.tiny import tiny

AUGMENT = Augment(rotate=10.0, translate=0.1, brightness=0.2, contrast=0.2, erase=0.3)
OFF = Augment(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
MIXED = AUGMENT.model_copy(update={"mixup": 0.8, "cutmix": 1.0, "mix_probability": 0.7})
PK = PKSampling(kind="pk", classes=4, images=3)
MEAN, STD = (0.3,), (0.4,)


def _set(n: int = 50) -> ImageSet:
    """Images that tell their own number: pixel (0, 0) of image i is i."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)
    images[:, 0, 0, 0] = torch.arange(n)
    return ImageSet(images, torch.arange(n) % 5)


def _loader(
    images: ImageSet | None = None,
    augment: Augment = AUGMENT,
    ra: int = 3,
    views: int = 1,
    sampling: PKSampling | None = None,
    **fields: Any,
) -> TrainLoader:
    augment = augment.model_copy(update={"views": views})
    data = DigitsData(source="digits", augment=augment, repeated_augmentation=ra)
    if sampling is not None:
        data = DigitsData(source="digits", augment=augment, sampling=sampling)
        fields = {"batch_size": sampling.classes * sampling.images, **fields}
    fields = {"num_classes": 5, "batch_size": 32, "pairs": "arbitrary", "seed": 3, **fields}
    return TrainLoader(images or _set(), data=data, mean=MEAN, std=STD, **fields)


def _assert_equal(one: Batch, other: Batch) -> None:
    assert (one.global_size, one.offset, one.views) == (other.global_size, other.offset, other.views)
    for name in ("images", "labels", "pair_labels", "rows", "samples"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert (one.mix is None) == (other.mix is None)
    if one.mix is not None and other.mix is not None:
        assert torch.equal(one.mix.labels, other.mix.labels)
        assert torch.equal(one.mix.weight, other.mix.weight)


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
        assert batch.samples.tolist() == _numbers(batch.images)
        assert batch.labels.tolist() == [n % 5 for n in _numbers(batch.images)]
        assert batch.mix is None
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
    augmenter = build_augmenter(AUGMENT, 8, MEAN, STD)
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


CASES: dict[str, dict[str, Any]] = {
    "arbitrary": {"pairs": "arbitrary", "batch_size": 32},
    "distinct": {"pairs": "distinct", "batch_size": 31, "ra": 1},
    "identical": {"pairs": "identical", "batch_size": 7, "ra": 2},
    "views": {"views": 3, "batch_size": 13, "ra": 2},
    "pk": {"sampling": PK},
    "pk, views": {"sampling": PK, "views": 2},
    "mixed": {"augment": MIXED, "batch_size": 13},
    "mixed views": {"augment": MIXED, "views": 2, "batch_size": 10, "ra": 1},
}


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("case", CASES)
def test_workers_interleaved_are_the_single_process(world_size: int, case: str) -> None:
    """Bit for bit. Worker r holds the images r::W of the global batch with all their views."""
    fields = CASES[case]
    single = _loader(**fields)
    workers = [_loader(**fields, rank=rank, world_size=world_size) for rank in range(world_size)]
    for whole, *parts in zip(single.batches(1), *(worker.batches(1) for worker in workers), strict=True):
        offset = 0
        for rank, part in enumerate(parts):
            positions = range(rank, whole.global_size // whole.views, world_size)
            rows = [position * whole.views + view for position in positions for view in range(whole.views)]
            assert part.rows.tolist() == rows
            assert (part.global_size, part.views, part.offset) == (whole.global_size, whole.views, offset)
            offset += len(rows)
            for name in ("images", "labels", "pair_labels", "samples"):
                assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), (name, rank)
            assert (part.mix is None) == (whole.mix is None)
            if part.mix is not None and whole.mix is not None:
                assert torch.equal(part.mix.labels, whole.mix.labels[rows])
                assert torch.equal(part.mix.weight, whole.mix.weight[rows])
        assert offset == whole.global_size


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_batch_resumes(case: str) -> None:
    whole = list(_loader(**CASES[case]).batches(3))
    for one, other in zip(whole[2:], _loader(**CASES[case]).batches(3, 2), strict=True):
        _assert_equal(one, other)


def test_views_of_an_image_are_side_by_side_and_drawn_apart() -> None:
    images = _set()
    loader = _loader(images, views=2, batch_size=8)
    order = torch.randperm(50, generator=rng.generator(3, "order", 1))
    batch = list(loader.batches(1))[2]
    assert loader.steps_per_epoch == 150 // 8
    assert (batch.global_size, batch.views, batch.rows.tolist()) == (16, 2, list(range(16)))
    positions = torch.arange(2 * 8, 3 * 8)
    samples = order[positions // 3].repeat_interleave(2)
    copies = ((positions % 3)[:, None] * 2 + torch.arange(2)).flatten()
    assert torch.equal(batch.samples, samples)
    augmenter = build_augmenter(AUGMENT, 8, MEAN, STD)
    assert torch.equal(batch.images, augmenter(images.images[samples], rng.key(3, "augment", 1), samples, copies))
    one = next(_loader(images, batch_size=8).batches(1))
    both = next(loader.batches(1))
    for name in ("labels", "pair_labels"):  # drawn for images: views change neither
        assert torch.equal(getattr(both, name), getattr(one, name).repeat_interleave(2))
    views = both.images.unflatten(0, (8, 2))
    assert not (views[:, 0] == views[:, 1]).flatten(1).all(1).any()


def test_pk_batches_hold_k_images_of_p_classes_in_this_order() -> None:
    loader = _loader(augment=OFF, sampling=PK)
    assert loader.steps_per_epoch == 50 // 12
    for batch in loader.batches(0):
        assert batch.samples.tolist() == _numbers(batch.images)
        assert batch.labels.tolist() == [n % 5 for n in _numbers(batch.images)]
        classes = batch.labels.unflatten(0, (4, 3))
        assert (classes == classes[:, :1]).all()
        assert len(set(classes[:, 0].tolist())) == 4
        assert sorted(batch.pair_labels.tolist()) == sorted(batch.labels.tolist())


def test_an_image_that_pk_draws_twice_is_augmented_anew() -> None:
    seen: dict[int, list[Tensor]] = {}
    for batch in _loader(sampling=PK).batches(0):
        for sample, image in zip(batch.samples.tolist(), batch.images, strict=True):
            seen.setdefault(sample, []).append(image)
    pairs = [found for found in seen.values() if len(found) > 1]
    assert pairs
    assert not any(torch.equal(found[0], found[1]) for found in pairs)


def test_mixed_batches_are_the_plain_ones_mixed() -> None:
    plain, mixed = _loader(batch_size=12), _loader(augment=MIXED, batch_size=12)
    kinds = set()
    for step, (one, other) in enumerate(zip(plain.batches(2), mixed.batches(2), strict=True)):
        plan = draw_mix(MIXED, 8, 12, rng.generator(3, "mix", 2, step))
        assert (plan is None) == (other.mix is None)
        kinds.add("none" if plan is None else "mixup" if plan.box is None else "cutmix")
        expected = one.images
        if plan is not None and other.mix is not None:
            expected = apply_mix(one.images, one.images[plan.partners], plan)
            assert torch.equal(other.mix.labels, one.labels[plan.partners])
            assert other.mix.weight.tolist() == [pytest.approx(plan.weight)] * 12
        torch.testing.assert_close(other.images, expected, rtol=0, atol=0)
        assert torch.equal(other.labels, one.labels)
    assert kinds == {"none", "mixup", "cutmix"}


def test_one_process_augments_no_row_twice() -> None:
    loader = _loader(augment=MIXED, batch_size=12)
    augmenter, rows = loader._augmenter, []

    class Counting:
        def draw(self, *args: Any) -> Any:
            return augmenter.draw(*args)

        def __call__(self, images: Tensor, *args: Any) -> Tensor:
            rows.append(len(images))
            return augmenter(images, *args)

    loader._augmenter = Counting()  # type: ignore[assignment]
    batches = list(loader.batches(0))
    assert sum(rows) == 12 * len(batches)


GOLDEN = {  # of the second epoch's first batch, before there were views, PK sampling and mixing
    (1, "arbitrary"): ("49b7166ab14b", "0bb984151f1a", 431.6807398875244, 6518.222854094962),
    (3, "distinct"): ("31174924f561", "43c5e7b6a5a6", 630.2252223244868, 6603.490909331191),
}


@pytest.mark.parametrize(("ra", "pairs"), GOLDEN)
def test_batches_are_those_of_earlier_versions(ra: int, pairs: str) -> None:
    """Interrupted runs go on, and the published arms stay what they were."""
    experiment = tiny(data__repeated_augmentation=ra, method__pairs=pairs)
    splits = load_splits(experiment.data)
    loader = TrainLoader(
        splits.train,
        data=experiment.data,
        mean=splits.mean,
        std=splits.std,
        num_classes=10,
        batch_size=128,
        pairs=experiment.method.pairs,  # type: ignore[union-attr]
        seed=0,
    )
    batch = next(loader.batches(1))
    labels, pair_labels, total, squares = GOLDEN[ra, pairs]
    assert _hash(batch.labels) == labels
    assert _hash(batch.pair_labels) == pair_labels
    assert float(batch.images.double().sum()) == pytest.approx(total, rel=1e-5)
    assert float(batch.images.double().square().sum()) == pytest.approx(squares, rel=1e-5)


def _hash(numbers: Tensor) -> str:
    return hashlib.sha256(",".join(map(str, numbers.tolist())).encode()).hexdigest()[:12]


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


def test_what_cannot_be_drawn_is_refused_before_and_at_the_start() -> None:
    assert _loader(batch_size=150).steps_per_epoch == 1
    with pytest.raises(DataError, match=r"train.batch_size: .*150 rows \(50 training images x .* 3\).*got 151"):
        _loader(batch_size=151)
    info = DataInfo(
        num_train=50,
        num_val=5,
        num_test=5,
        channels=1,
        class_names=("cat", "dog"),
        fingerprint="",
        class_sizes=(30, 20),
    )
    data = DigitsData(source="digits", repeated_augmentation=3)
    check_batch(info, data, 150)
    with pytest.raises(DataError, match=r"train\.batch_size: .*got 151"):
        check_batch(info, data, 151)
    too_many = PKSampling(kind="pk", classes=2, images=21)
    with pytest.raises(DataError, match=r"data\.sampling\.images: .*20 of class 'dog' \(got 21\)"):
        check_batch(info, DigitsData(source="digits", sampling=too_many), 42)
    with pytest.raises(DataError, match=r"data\.sampling\.images: .*10 of class 0 \(got 21\)"):
        _loader(sampling=too_many)
    with pytest.raises(DataError, match=r"data\.sampling\.classes: .*got 6"):
        _loader(sampling=PKSampling(kind="pk", classes=6, images=1))


def test_impossible_workers_and_pairs_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"resources\.workers: more workers.*got 40"):
        _loader(world_size=40)
    with pytest.raises(ValueError, match="rank"):
        _loader(rank=2, world_size=2)
    with pytest.raises(DataError, match=r"method\.pairs: .*distinct"):
        _loader(num_classes=1, pairs="distinct")
