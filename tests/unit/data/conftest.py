"""Small Parquet sets in the Hugging Face layout."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

WriteParquet = Callable[..., Path]


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """uint8 [h, w, 3] or [h, w] to an image file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def pixels_of(row: int, size: int = 8) -> np.ndarray:
    """uint8 [size, size, 3], another image for every row."""
    return np.random.default_rng(row).integers(0, 256, (size, size, 3), dtype=np.uint8)


def write_parquet(
    path: Path,
    labels: Sequence[int | None],
    *,
    names: Sequence[str] | None = None,
    image_column: str = "img",
    label_column: str = "label",
    label_type: pa.DataType | None = None,
    images: Sequence[bytes | None] | None = None,
    as_struct: bool = True,
    first_row: int = 0,
) -> Path:
    """Write one file whose row i holds `pixels_of(first_row + i)`, unless `images` says otherwise."""
    if images is None:
        images = [encode(pixels_of(first_row + i)) for i in range(len(labels))]
    column: pa.Array = pa.array(images, pa.binary())
    if as_struct:
        paths = pa.array([f"images/{first_row + i}.png" for i in range(len(labels))])
        column = pa.StructArray.from_arrays([column, paths], names=["bytes", "path"])
    table = pa.table({image_column: column, label_column: pa.array(labels, label_type or pa.int64())})
    if names is not None:
        features = {label_column: {"names": list(names), "_type": "ClassLabel"}, image_column: {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


@pytest.fixture(name="write")
def _write() -> WriteParquet:
    return write_parquet
