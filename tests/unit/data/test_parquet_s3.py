from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import fs as pafs

from simlap.config.schema import DigitsData, FolderData, ParquetData
from simlap.config.schema.data import Streaming
from simlap.data import TrainLoader, convert, inspect_data, load_splits
from simlap.errors import DataError
from tests.unit.data.conftest import encode

pytestmark = pytest.mark.slow


@pytest.fixture
def query(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The query of an s3:// URI that leads to a mock server."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port, server)
        yield f"endpoint_override=127.0.0.1%3A{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    finally:
        server.terminate()
        server.wait(10)


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, "the mock server ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("the mock server did not listen within 60 s")


def test_shards_on_an_object_store(tmp_path: Path, write: Any, query: str) -> None:
    labels = [0, 1, 2] * 4
    filesystem, root = pafs.FileSystem.from_uri(f"s3://bucket/set?{query}")
    filesystem.create_dir("bucket")
    write(tmp_path / "train" / "a.parquet", labels[:6])
    write(tmp_path / "train" / "b.parquet", labels[6:], first_row=6)
    write(tmp_path / "test.parquet", [1, 0])
    for name in ("train/a.parquet", "train/b.parquet", "test.parquet"):
        with filesystem.open_output_stream(f"{root}/{name}") as stream:
            stream.write((tmp_path / name).read_bytes())
    remote = ParquetData(
        source="parquet",
        train=f"s3://bucket/set/train?{query}",
        test=f"s3://bucket/set/test.parquet?{query}",
        image_size=8,
        validation="none",
    )
    local = ParquetData(
        source="parquet",
        train=str(tmp_path / "train"),
        test=str(tmp_path / "test.parquet"),
        image_size=8,
        validation="none",
    )
    assert inspect_data(remote) == inspect_data(local)
    assert load_splits(remote).train.images.equal(load_splits(local).train.images)
    missing = ParquetData(source="parquet", train=f"s3://bucket/none?{query}", test=remote.test)
    with pytest.raises(DataError, match=r"data\.train: no such file or folder: s3://bucket/none"):
        inspect_data(missing)


def test_streaming_from_an_object_store(query: str) -> None:
    filesystem, root = pafs.FileSystem.from_uri(f"s3://bucket/x?{query}")
    filesystem.create_dir("bucket")
    target = f"s3://bucket/streamed?{query}"
    made = convert(DigitsData(source="digits", fraction=0.1), target, rows_per_shard=20, shuffle=True)
    held = ParquetData(
        source="parquet",
        train=f"s3://bucket/streamed/train?{query}",
        test=f"s3://bucket/streamed/test?{query}",
        image_size=8,
    )
    lazy = held.model_copy(update={"streaming": Streaming(workers=3, prefetch=1, block=20, window=100)})
    one, two = (_loader(data) for data in (held, lazy))
    for expected, batch in zip(one.batches(0), two.batches(0), strict=True):
        assert torch.equal(expected.images, batch.images)
    narrow = _loader(lazy.model_copy(update={"streaming": Streaming(workers=1, prefetch=1, block=20, window=1)}))
    batches = narrow.batches(0)
    next(batches)
    for file in made.files:
        filesystem.delete_file(f"{root.removesuffix('/x')}/streamed/{file}")
    with pytest.raises(DataError, match=r"data\.train: cannot read bucket/streamed/train/train-.*\.parquet: "):
        list(batches)


def _loader(data: ParquetData) -> TrainLoader:
    splits = load_splits(data)
    return TrainLoader(
        splits.train,
        data=data,
        mean=splits.mean,
        std=splits.std,
        num_classes=10,
        batch_size=10,
        pairs="arbitrary",
        seed=0,
    )


def test_conversion_to_an_object_store(query: str) -> None:
    filesystem, _ = pafs.FileSystem.from_uri(f"s3://bucket/x?{query}")
    filesystem.create_dir("bucket")
    data = DigitsData(source="digits", fraction=0.2)
    target = f"s3://bucket/digits?{query}"
    made = convert(data, target, rows_per_shard=100)
    assert len(made.files) == 3 + 4
    back = ParquetData(
        source="parquet",
        train=f"s3://bucket/digits/train?{query}",
        test=f"s3://bucket/digits/test?{query}",
        image_size=8,
        validation="none",
    )
    one, two = load_splits(data.model_copy(update={"validation": "none"})), load_splits(back)
    assert one.class_names == two.class_names
    assert torch.equal(one.train.images, two.train.images)
    assert torch.equal(one.test.labels, two.test.labels)
    with pytest.raises(DataError, match="not empty") as caught:
        convert(data, target)
    assert caught.value.key == "target"


def test_image_folders_on_an_object_store(query: str) -> None:
    filesystem, root = pafs.FileSystem.from_uri(f"s3://bucket/photos?{query}")
    filesystem.create_dir("bucket")
    for i, path in enumerate(("train/ant/a.png", "train/bee/deep/b.png", "test/ant/c.png", "test/bee/d.png")):
        pixels = np.full((8, 8, 3), i, dtype=np.uint8)
        with filesystem.open_output_stream(f"{root}/{path}") as stream:
            stream.write(encode(pixels))
    data = FolderData(
        source="folder",
        train=f"s3://bucket/photos/train?{query}",
        test=f"s3://bucket/photos/test?{query}",
        image_size=8,
        validation="none",
    )
    splits = load_splits(data)
    assert splits.class_names == ("ant", "bee")
    assert splits.train.images[:, 0, 0, 0].tolist() == [0, 1]
    assert splits.test.images[:, 0, 0, 0].tolist() == [2, 3]
