"""Images that are empty, cut off, damaged or gigantic: others of their class stand in, they are listed; too many are an error."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from simlap.config import Experiment, validate
from simlap.data.check import check_dataset
from simlap.data.decode import DecodeError, decode_image
from simlap.data.encoded import pixels
from simlap.data.files import FileSource
from simlap.data.loader import TrainLoader
from simlap.data.source import StoredImage
from simlap.data.splits import Splits, load_splits
from simlap.errors import DataError
from simlap.record.journal import cell_storage, read_cell
from simlap.run.bad_images import LIST
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.train.check import check_experiment
from simlap.train.world import World
from tests.chaos.bad_images import break_some, broken, gif_bomb, image_folders, jpeg_bomb, picture, png_bomb
from tests.tiny import TREE

KINDS = ["PNG", "JPEG", "GIF", "WEBP"]
DAMAGED = 400
"""Images of each kind, each damaged in another place."""
STREAMING = {"workers": 2, "prefetch": 2, "block": 8, "window": 4}


def experiment(section: dict[str, Any], **data: Any) -> Experiment:
    tree = {**TREE, "train": {"epochs": 2, "batch_size": 16}}
    tree["data"] = {"image_size": 12, "max_bad_share": 0.2, "augment": {"flip": 0.5}, **section, **data}
    return validate(Experiment, tree)


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("images")
    made = image_folders(root)
    break_some(root)
    return made


def names(splits: Splits) -> list[str]:
    return sorted("/".join(image.place.split("/")[-3:]) for image in splits.bad_images())


def test_the_next_of_the_class_stands_in(section: dict[str, str]) -> None:
    splits = load_splits(experiment(section, validation="none").data)
    assert names(splits) == [
        "test/class1/003.jpeg", "train/class0/004.png", "train/class0/005.jpeg", "train/class1/010.png",
        "train/class1/039.jpeg", "train/class2/000.png",
    ]  # fmt: skip
    images = splits.train.images
    for bad, good in ((4, 6), (5, 6), (40 + 10, 40 + 11), (40 + 39, 40 + 0), (80, 81)):
        assert torch.equal(images[bad], images[good])
    assert torch.equal(splits.test.images[8 + 3], splits.test.images[8 + 4])
    assert splits.train.labels.bincount().tolist() == [40, 40, 40], "no class has fewer"


def test_streamed_as_in_memory(section: dict[str, str]) -> None:
    held = load_splits(experiment(section).data)
    streamed = load_splits(experiment(section, streaming=STREAMING).data)
    assert held.val is not None
    assert streamed.val is not None
    for mine, theirs in ((held.train, streamed.train), (held.val, streamed.val), (held.test, streamed.test)):
        assert torch.equal(mine.images, torch.cat(list(theirs.batches(7))))
    assert names(held) == names(streamed)
    assert (held.mean, held.std) == (streamed.mean, streamed.std)


def batches(data: Experiment, splits: Splits, workers: int, start: int = 0) -> list[Tensor]:
    """The global batches of an epoch, put together from what each worker makes."""

    def of(rank: int) -> Iterator[Any]:
        loader = TrainLoader(
            splits.train, data=data.data, mean=splits.mean, std=splits.std, num_classes=3, batch_size=16,
            pairs="identical", seed=1, rank=rank, world_size=workers,
        )  # fmt: skip
        return loader.batches(1, start)

    found = []
    for parts in zip(*(of(rank) for rank in range(workers)), strict=True):
        rows = torch.cat([part.rows for part in parts])
        found.append(torch.cat([part.images for part in parts])[rows.argsort()])
    return found


@pytest.mark.parametrize("streaming", [None, STREAMING], ids=["held", "streamed"])
def test_batches_do_not_depend_on_workers_or_on_where_an_epoch_is_entered(
    streaming: dict[str, int] | None, section: dict[str, str]
) -> None:
    data = experiment(section, streaming=streaming)
    whole = batches(data, load_splits(data.data), 1)
    assert len(whole) > 4
    for workers, start in ((2, 0), (3, 0), (1, 3), (2, 4)):
        again = batches(data, load_splits(data.data), workers, start)
        assert len(again) == len(whole) - start
        assert all(torch.equal(a, b) for a, b in zip(again, whole[start:], strict=True)), (workers, start)


@pytest.mark.parametrize("streaming", [None, {**STREAMING, "window": 60}], ids=["held", "streamed"])
def test_parquet(streaming: dict[str, int] | None, tmp_path: Path) -> None:
    contents: list[bytes | None] = [picture(i) for i in range(60)]
    for row, content in zip((3, 4, 59), (b"", None, picture(0)[:80]), strict=True):
        contents[row] = content
    labels = [i % 3 for i in range(60)]
    for part in ("train", "test"):
        path = tmp_path / part / "0.parquet"
        path.parent.mkdir()
        shown = contents if part == "train" else [picture(i + 100) for i in range(60)]
        pq.write_table(pa.table({"image": shown, "label": labels}), path, row_group_size=10)
    section = {"source": "parquet", "train": str(tmp_path / "train"), "test": str(tmp_path / "test")}
    splits = load_splits(experiment(section, streaming=streaming, validation="none").data)
    images = torch.cat(list(splits.train.batches(8)))
    for bad, good in ((3, 6), (4, 7), (59, 2)):
        assert torch.equal(images[bad], images[good])
    assert [image.row for image in splits.bad_images()] == [3, 4, 59]


@pytest.mark.parametrize("streaming", [None, STREAMING], ids=["held", "streamed"])
def test_too_many_are_an_error(streaming: dict[str, int] | None, section: dict[str, str]) -> None:
    data = experiment(section, streaming=streaming, max_bad_share=0.01, validation="none").data
    with pytest.raises(DataError) as caught:
        for _ in load_splits(data, mean=(0.5,) * 3, std=(0.5,) * 3).train.batches(8):
            pass
    assert str(caught.value).startswith("data.train: 2 of the 120 images of the train set cannot be decoded")
    assert "more than data.max_bad_share (0.01) allows" in str(caught.value)
    assert "class0/004.png" in str(caught.value)


def test_without_a_good_one_there_is_no_class(tmp_path: Path) -> None:
    section = image_folders(tmp_path, train=6)
    for path in (tmp_path / "train" / "class1").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no image of its class can stand in"):
        load_splits(experiment(section, validation="none", max_bad_share=0.9).data)


def test_trouble_of_the_storage_is_no_bad_image(section: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It would change the numbers without a word."""

    def fail(self: FileSource, part: str, path: str) -> bytes:
        raise OSError(5, "Input/output error", path)

    opened = load_splits(experiment(section, streaming=STREAMING, mean=(0.5,) * 3, std=(0.5,) * 3).data)
    monkeypatch.setattr(opened.train.source, "_read", fail.__get__(opened.train.source))  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="Input/output error"):
        next(opened.train.batches(8))
    assert opened.bad_images() == ()


def test_no_damage_ends_the_process() -> None:
    """In a process of its own: a decoder that is written in C may take it along."""
    code = f"from tests.chaos.bad_images import decode_damaged; print(decode_damaged({KINDS}, {DAMAGED}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-500:]}"
    refused = dict(zip(KINDS, map(int, done.stdout.split()), strict=True))
    assert all(count > DAMAGED / 10 for count in refused.values()), f"cut off, most of all: {refused}"
    assert refused["PNG"] == DAMAGED, "it has checksums"


# --- gigantic ones


@pytest.mark.parametrize("make", [png_bomb, jpeg_bomb, gif_bomb], ids=lambda make: make.__name__)
def test_a_gigantic_image_takes_no_memory(make: Any) -> None:
    content = make()
    assert len(content) < 1_500_000
    stored = StoredImage("here", None, lambda: content)
    with pytest.raises(DecodeError, match=r"here: the image has .* pixels or more; at most 178,956,970"):
        decode_image(stored, 3)  # once, for what is imported
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DecodeError):
        decode_image(stored, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "KiB"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_sizes_are_read(kind: str) -> None:
    assert pixels(picture(1, kind)) == 20 * 24


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"\xff\xd8\xff\xc0\x00", b"\x89PNG\r\n\x1a\n\x00", b"text"])
def test_where_there_is_no_size(content: bytes) -> None:
    assert pixels(content) is None


def test_the_check_lists_them(section: dict[str, str]) -> None:
    report = check_dataset(experiment(section).data)
    assert len(report.faults) == len(broken()) + 1
    assert sum("60000" in fault or "3,600,000,000" in fault for fault in report.faults) == 1


# --- the way that a run takes


def run(storage: Storage, data: Experiment, until: int | None = None) -> str:
    (stage,) = check_experiment(data, file="x")
    config = stage.experiment.model_dump(mode="json")
    task = CellTask(stage.cell_id, config, storage.uri, {"data_fingerprint": stage.info.fingerprint}, until=until)
    for _ in run_cell(task, World()):
        pass
    return stage.cell_id


@pytest.mark.parametrize("streaming", [None, STREAMING], ids=["held", "streamed"])
def test_a_run_lists_them_and_is_resumed_exactly(
    streaming: dict[str, int] | None, section: dict[str, str], tmp_path: Path
) -> None:
    data = experiment(section, streaming=streaming)
    whole, parts = Storage(tmp_path / "whole"), Storage(tmp_path / "parts")
    cell_id = run(whole, data)
    run(parts, data, until=1)
    run(parts, data)
    found = []
    for storage in (whole, parts):
        cell = cell_storage(storage, cell_id)
        listed = cell.read_json(LIST)["images"]
        assert [image["place"].split("/")[-2:] for image in listed if image["set"] == "test"] == [
            ["class1", "003.jpeg"]
        ]
        assert len(listed) == 6
        (told,) = read_cell(storage, cell_id).warnings
        assert told.startswith("6 images cannot be decoded (")
        assert "1 of 24 test" in told
        assert cell.describe(LIST) in told
        result = cell.read_json("result.json")
        found.append((listed, result["checkpoint"]["sha256"], result["evaluations"]))
    assert found[0] == found[1]
