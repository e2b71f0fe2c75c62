from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simlap.config.schema import Augment, DigitsData, ParquetData, PKSampling
from simlap.config.schema.data import Streaming
from simlap.data import ImageSet, TrainLoader, load_splits
from simlap.data.batch import Batch
from simlap.errors import DataError
from tests.unit.data.conftest import encode, pixels_of
from tests.unit.data.streams import Groups, numbered, streamed, threads

AUGMENT = Augment(rotate=10.0, brightness=0.2, erase=0.3)
OFF = Augment(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
MIXED = AUGMENT.model_copy(update={"mixup": 0.8, "cutmix": 1.0, "mix_probability": 0.7})


def _loader(images: ImageSet, augment: Augment = OFF, ra: int = 1, batch_size: int = 8, **fields: Any) -> TrainLoader:
    sampling: dict[str, Any] = {"sampling": fields.pop("sampling")} if "sampling" in fields else {}
    data = DigitsData(source="digits", augment=augment, repeated_augmentation=ra, **sampling)
    fields = {"num_classes": 5, "pairs": "arbitrary", "seed": 3, **fields}
    return TrainLoader(images, data=data, mean=(0.0,), std=(1 / 255,), batch_size=batch_size, **fields)


def _assert_same(one: Batch, other: Batch) -> None:
    for name in ("images", "labels", "pair_labels", "rows", "samples"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert (one.mix is None) == (other.mix is None)


def _numbers(images: Tensor) -> list[int]:
    """Which images an unaugmented batch holds."""
    return (images[:, 0, 0, 0] + 256 * images[:, 0, 0, 1]).round().int().tolist()


CASES: dict[str, dict[str, Any]] = {
    "plain": {"augment": AUGMENT},
    "repeated": {"augment": AUGMENT, "ra": 3},
    "views": {"augment": AUGMENT.model_copy(update={"views": 2})},
    "mixed": {"augment": MIXED, "ra": 2},
}


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("group", [None, 7])
@pytest.mark.parametrize("case", CASES)
def test_batches_are_those_of_decoded_images(case: str, group: int | None, world_size: int) -> None:
    """Bit for bit, where the order is the same: files, or one window for all blocks."""
    images = numbered(60)
    for rank in range(world_size):
        fields = {**CASES[case], "rank": rank, "world_size": world_size}
        lazy = _loader(streamed(Groups(images, group), window=100), **fields)
        held = _loader(images, **fields)
        assert lazy.steps_per_epoch == held.steps_per_epoch
        for one, other in zip(held.batches(1), lazy.batches(1), strict=True):
            _assert_same(one, other)


def test_pk_sampling_from_files() -> None:
    images = numbered(60)
    sampling = PKSampling(kind="pk", classes=4, images=2)
    lazy = _loader(streamed(Groups(images, None)), AUGMENT, sampling=sampling)
    for one, other in zip(_loader(images, AUGMENT, sampling=sampling).batches(0), lazy.batches(0), strict=True):
        _assert_same(one, other)


@settings(max_examples=20)
@given(
    n=st.integers(8, 60),
    group=st.integers(1, 20),
    block=st.integers(1, 20),
    window=st.integers(1, 6),
    batch_size=st.integers(2, 8),
    ra=st.integers(1, 3),
    world_size=st.integers(1, 2),
    prefetch=st.integers(1, 9),
    mixed=st.booleans(),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_every_order_gives_the_right_images_reads_groups_once_and_resumes(
    n: int,
    group: int,
    block: int,
    window: int,
    batch_size: int,
    ra: int,
    world_size: int,
    prefetch: int,
    mixed: bool,
    epoch: int,
    data: st.DataObject,
) -> None:
    images, augment = numbered(n), OFF.model_copy(update={"mixup": 0.5 if mixed else 0.0})
    seen: list[list[int]] = []
    for rank in range(world_size):
        source = Groups(images, group)
        lazy = streamed(source, block=block, window=window, prefetch=prefetch)
        loader = _loader(lazy, augment, ra, batch_size, rank=rank, world_size=world_size)
        whole = list(loader.batches(epoch))
        assert len(whole) == loader.steps_per_epoch == n * ra // batch_size
        if not mixed:
            assert all(_numbers(batch.images) == batch.samples.tolist() for batch in whole)
        assert len(source.reads) == len(set(source.reads)), "a group is read twice"
        assert source.held == 0
        start = data.draw(st.integers(0, loader.steps_per_epoch))
        tail = list(loader.batches(epoch, start))
        assert len(tail) == len(whole) - start
        for one, other in zip(whole[start:], tail, strict=True):
            _assert_same(one, other)
        seen.append([sample for batch in whole for sample in batch.samples.tolist()])
    drawn = sorted(sample for worker in seen for sample in worker)
    assert len(drawn) == n * ra // batch_size * batch_size
    assert max(map(drawn.count, drawn)) <= ra, "workers share the epoch's rows"


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (4, 3)])
def test_encoded_images_in_memory_are_bounded(workers: int, prefetch: int) -> None:
    source = Groups(numbered(1000), 10)
    lazy = streamed(source, block=10, window=4, workers=workers, prefetch=prefetch)
    most = 0
    for _ in _loader(lazy).batches(0):
        most = max(most, source.held)
    assert 40 <= most <= (4 + 1) * 10 + prefetch * 8


def test_a_worker_holds_its_own_images_only() -> None:
    source = Groups(numbered(1000), 10)
    most = 0
    for _ in _loader(streamed(source, block=10, window=8), rank=1, world_size=4).batches(0):
        most = max(most, source.held)
    assert most <= (8 + 1) * 10 / 4 + 2 * 2 + 10


@pytest.mark.parametrize("group", [None, 10])
def test_leaving_an_epoch_ends_its_threads(group: int | None) -> None:
    before = threads()
    batches = _loader(streamed(Groups(numbered(1000), group))).batches(0)
    next(batches)
    assert len(threads()) > len(before)
    del batches
    gc.collect()
    assert threads() == before
    for _ in _loader(streamed(Groups(numbered(1000), group))).batches(0):
        break
    assert threads() == before


@pytest.mark.parametrize("group", [None, 10])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_broken_image_is_named_where_training_meets_it(group: int | None, workers: int) -> None:
    source = Groups(numbered(200), group, broken=[77])
    loader = _loader(streamed(source, workers=workers, prefetch=1))
    clean = list(_loader(streamed(Groups(numbered(200), group), workers=workers)).batches(0))
    batches = loader.batches(0)
    for expected in clean:
        if 77 in expected.samples:
            break
        _assert_same(expected, next(batches))
    with pytest.raises(DataError, match=r"data\.train: memory, image 77: "):
        next(batches)
    assert not threads()


def _shards(tmp_path: Path, write: Any) -> tuple[ParquetData, list[Path]]:
    paths = [write(tmp_path / "train" / f"{i}.parquet", [0, 1] * 10, first_row=20 * i) for i in range(6)]
    test = write(tmp_path / "test.parquet", [0, 1], first_row=500)
    streaming = Streaming(workers=2, prefetch=1, block=20, window=1)
    data = ParquetData(
        source="parquet",
        train=str(tmp_path / "train"),
        test=str(test),
        image_size=8,
        validation="none",
        augment=OFF,
        streaming=streaming,
    )
    return data, paths


def _train(data: ParquetData, seed: int = 0) -> TrainLoader:
    splits = load_splits(data)
    return TrainLoader(
        splits.train,
        data=data,
        mean=splits.mean,
        std=splits.std,
        num_classes=2,
        batch_size=10,
        pairs="arbitrary",
        seed=seed,
    )


def test_a_shard_that_vanishes_is_named_and_nothing_hangs(tmp_path: Path, write: Any) -> None:
    data, paths = _shards(tmp_path, write)
    loader = _train(data)
    batches = loader.batches(0)
    order = [int(batch.samples[0]) // 20 for batch in loader.batches(0)]
    next(batches)
    paths[order[-1]].unlink()
    with pytest.raises(DataError, match=rf"data\.train: cannot read {paths[order[-1]]}: ") as caught:
        list(batches)
    assert caught.value.key == "data.train"
    assert not threads()


def test_a_shard_that_is_cut_off_in_mid_training_is_named(tmp_path: Path, write: Any) -> None:
    data, paths = _shards(tmp_path, write)
    loader = _train(data)
    for path in paths:
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cannot read .*\.parquet: "):
        next(loader.batches(0))
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(DataError, match=r"cannot read .*\.parquet: "):
        next(loader.batches(0))
    assert not threads()


def test_a_corrupt_row_is_named(tmp_path: Path, write: Any) -> None:
    data, paths = _shards(tmp_path, write)
    images = [encode(pixels_of(i)) for i in range(20)]
    images[13] = b"\xff\xd8 no image"
    write(paths[2], [0, 1] * 10, images=images)
    loader = _train(data.model_copy(update={"mean": (0.5,) * 3, "std": (0.5,) * 3, "max_bad_share": 0.0}))
    with pytest.raises(DataError, match=rf"{paths[2]}, row 13 \(images/13\.png\): "):
        list(loader.batches(0))
