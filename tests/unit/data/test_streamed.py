from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simlap.config.schema import DigitsData, FolderData, ParquetData, PKSampling
from simlap.config.schema.data import Streaming
from simlap.data import TrainLoader, check_dataset, eval_batches, inspect_data, load_splits, memory
from simlap.data import streamed as module
from simlap.data.channels import channel_statistics, with_channels
from simlap.data.source import ImageSet
from simlap.data.streamed import StreamedSet, check_shuffling
from simlap.errors import ConfigError, DataError
from tests.unit.data.conftest import encode, pixels_of
from tests.unit.data.streams import Groups, numbered, streamed, threads


@given(
    st.lists(st.integers(0, 29), min_size=1, max_size=40, unique=True),
    st.booleans(),
    st.integers(1, 12),
    st.sampled_from([None, 1, 7, 100]),
)
def test_batches_are_the_images_in_order(rows: list[int], ascending: bool, batch_size: int, group: int | None) -> None:
    images = numbered(30)
    rows = sorted(rows) if ascending else rows
    found = list(streamed(Groups(images, group), rows=torch.tensor(rows)).batches(batch_size))
    assert [len(part) for part in found] == [len(part) for part in torch.tensor(rows).split(batch_size)]
    assert torch.equal(torch.cat(found), images.images[rows])


def test_parts_of_a_set_are_what_they_are_in_memory() -> None:
    images = numbered(23, channels=3)
    lazy = streamed(Groups(images, 5))
    assert lazy.shape == images.shape == (3, 8, 8)
    assert len(lazy) == 23
    for one, other in (
        (lazy, images),
        (lazy.share(1, 3), images.share(1, 3)),
        (lazy.share(0, 2).share(1, 2), images.share(0, 2).share(1, 2)),
        (lazy.subset(torch.tensor([7, 3, 20])), images.subset(torch.tensor([7, 3, 20]))),
    ):
        assert isinstance(one, StreamedSet)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    with pytest.raises(ValueError, match="23 images but 2 labels"):
        StreamedSet(lazy.source, "train", lazy.rows, lazy.labels[:2], shape=(3, 8, 8), data=lazy._data)


@pytest.mark.parametrize(("have", "want"), [(1, 3), (3, 1)])
def test_channels_are_converted_as_in_memory(have: int, want: int) -> None:
    images = numbered(23, channels=have)
    lazy = streamed(Groups(images, 5), channels=want)
    expected = with_channels(images.images, want)
    assert torch.equal(torch.cat([*lazy.batches(4)]), expected)
    assert torch.equal(lazy.images, expected)
    assert lazy.statistics() == channel_statistics(expected)


def test_one_pass_reads_every_group_once() -> None:
    source = Groups(numbered(40), 5)
    for _ in streamed(source).batches(7):
        pass
    assert source.reads == list(range(8))


def test_leaving_a_pass_ends_its_threads() -> None:
    before = threads()
    batches = streamed(Groups(numbered(2000), 100)).batches(3)
    next(batches)
    batches.close()
    assert threads() == before


@pytest.mark.parametrize("order", [torch.arange(9), torch.arange(9).flip(0)])
def test_an_image_that_cannot_be_decoded_is_named(order: torch.Tensor) -> None:
    lazy = streamed(Groups(numbered(9), 4, broken=[6]), rows=order)
    with pytest.raises(DataError, match=r"data\.train: memory, image 6: ") as caught:
        list(lazy.batches(4))
    assert caught.value.key == "data.train"
    assert not threads()


def test_all_images_at_once_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 9 * 64 - 1)
    with pytest.raises(DataError, match=r"9 images of 1 x 8 x 8.*data\.streaming"):
        _ = streamed(Groups(numbered(9), 4)).images


@pytest.mark.parametrize("group", [None, 7])
def test_statistics_are_of_a_spread_sample(monkeypatch: pytest.MonkeyPatch, group: int | None) -> None:
    images = numbered(100)
    lazy = streamed(Groups(images, group))
    monkeypatch.setattr(module, "STATISTICS_IMAGES", 100)
    assert lazy.statistics() == channel_statistics(images.images)
    monkeypatch.setattr(module, "STATISTICS_IMAGES", 20)
    monkeypatch.setattr(module, "_STATISTICS_RUN", 5)
    chosen = torch.arange(20) * 99 // 19 if group is None else torch.cat([torch.arange(5) + i for i in (0, 31, 63, 95)])
    assert lazy.statistics() == channel_statistics(images.images[chosen])


# --- whole datasets


def _parquet(tmp_path: Path, write: Any, labels: list[int], **fields: Any) -> ParquetData:
    for i in range(4):
        write(tmp_path / "train" / f"{i}.parquet", labels[i * 10 : i * 10 + 10], first_row=i * 10)
    write(tmp_path / "test.parquet", [0, 1, 2], first_row=90)
    fields = {"image_size": 8, **fields}
    return ParquetData(source="parquet", train=str(tmp_path / "train"), test=str(tmp_path / "test.parquet"), **fields)


def _folder(tmp_path: Path, **fields: Any) -> FolderData:
    for i in range(24):
        path = tmp_path / ("test" if i % 6 == 5 else "train") / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(pixels_of(i, 10 + i % 2)))
    # classes of the test part too
    for name in "abc":
        (tmp_path / "test" / name).mkdir(exist_ok=True)
        (tmp_path / "test" / name / "x.png").write_bytes(encode(pixels_of(50)))
    fields = {"image_size": 8, **fields}
    return FolderData(source="folder", train=str(tmp_path / "train"), test=str(tmp_path / "test"), **fields)


STREAMING = Streaming(workers=2, prefetch=2, block=5, window=2)


@pytest.mark.parametrize("kind", ["parquet", "folder", "digits"])
def test_splits_are_those_of_the_decoded_dataset(tmp_path: Path, write: Any, kind: str) -> None:
    data: Any = DigitsData(source="digits", stored_size=9)
    if kind != "digits":
        data = _parquet(tmp_path, write, [0, 1, 2, 1] * 10) if kind == "parquet" else _folder(tmp_path)
    other = data.model_copy(update={"streaming": STREAMING})
    assert inspect_data(other) == inspect_data(data)
    decoded, lazy = load_splits(data), load_splits(other)
    assert (lazy.mean, lazy.std, lazy.channels) == (decoded.mean, decoded.std, decoded.channels)
    assert isinstance(lazy.test, StreamedSet)
    assert decoded.val is not None
    assert lazy.val is not None
    for one, two in ((decoded.train, lazy.train), (decoded.val, lazy.val), (decoded.test, lazy.test)):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)
        for (a, b), (c, d) in zip(eval_batches(one, decoded, "cpu", 7), eval_batches(two, lazy, "cpu", 7), strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)
    assert check_dataset(other) == check_dataset(data)
    given = load_splits(other.model_copy(update={"mean": (0.5,) * lazy.channels, "std": (0.25,) * lazy.channels}))
    assert given.mean == (0.5,) * lazy.channels


def test_loading_needs_no_memory_for_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    data = DigitsData(source="digits", streaming=STREAMING)
    assert len(load_splits(data).train) == 1260
    with pytest.raises(DataError, match=r"decode them while training goes on \(`data.streaming: \{\}`\)"):
        load_splits(data.model_copy(update={"streaming": None}))


# --- what cannot be shuffled


def test_sampling_from_everywhere_needs_files(tmp_path: Path, write: Any) -> None:
    sampling = PKSampling(kind="pk", classes=2, images=2)
    data = _parquet(tmp_path, write, [0, 1, 2, 1] * 10, streaming=STREAMING, sampling=sampling)

    def load(data: Any) -> None:
        splits = load_splits(data)
        TrainLoader(
            splits.train,
            data=data,
            mean=splits.mean,
            std=splits.std,
            num_classes=3,
            batch_size=4,
            pairs="arbitrary",
            seed=0,
        )

    for call in (inspect_data, load):
        with pytest.raises(
            ConfigError, match=r"data\.sampling\.kind: .*image folder.*got 'pk'.* Valid: uniform"
        ) as caught:
            call(data)
        assert (caught.value.key, caught.value.value) == ("data.sampling.kind", "pk")
    assert inspect_data(data.model_copy(update={"streaming": None})).num_train == 36
    folder = _folder(tmp_path / "f", streaming=STREAMING, sampling=sampling, validation="none")
    assert inspect_data(folder).num_train == 26 - 6
    load(folder)


def test_shards_sorted_by_class_are_refused() -> None:
    images = numbered(1000)
    sorted_set = ImageSet(images.images, torch.arange(1000) // 20)
    data = DigitsData(source="digits")

    def check(images: ImageSet, group: int | None, window: int) -> None:
        lazy = streamed(Groups(images, group), block=10, window=window)
        object.__setattr__(lazy, "labels", images.labels)
        check_shuffling(lazy, data)

    check(images, 10, 2)
    check(sorted_set, None, 2)  # files: shuffled as in memory
    check(sorted_set, 10, 50)
    with pytest.raises(
        DataError, match=r"streaming\.window: 4 blocks .* hold 4 classes .*, 2\d .* memory is sorted"
    ) as caught:
        check(sorted_set, 10, 4)
    assert (caught.value.key, caught.value.value) == ("data.streaming.window", 4)
