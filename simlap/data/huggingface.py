"""What the `datasets` library writes into a Parquet file's schema about its columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

_KEY = b"huggingface"


def image_schema(class_names: Sequence[str], *, grey: bool) -> Any:
    """A pa.Schema of the columns `image` (struct{bytes, path}) and `label` (int64), with the classes' names."""
    features = {
        "image": {"mode": "L", "_type": "Image"} if grey else {"_type": "Image"},
        "label": {"names": list(class_names), "_type": "ClassLabel"},
    }
    fields = [
        pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])),
        pa.field("label", pa.int64()),
    ]
    return pa.schema(fields, metadata={_KEY: json.dumps({"info": {"features": features}})})


def class_names_in(schema: Any, column: str) -> tuple[str, ...] | None:
    """Class names of a label column, where they are there and well formed."""
    names = _feature(schema, column, "names")
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def is_grey(schema: Any, column: str) -> bool:
    """Whether an image column is said to hold grey images (Pillow's mode `L`)."""
    return bool(_feature(schema, column, "mode") == "L")


def _feature(schema: Any, column: str, field: str) -> Any:
    try:
        return json.loads((schema.metadata or {})[_KEY])["info"]["features"][column][field]
    except (KeyError, TypeError, ValueError):
        return None
