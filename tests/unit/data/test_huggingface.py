from __future__ import annotations

import json

import pyarrow as pa
import pytest

from simlap.data.huggingface import class_names_in, image_schema, is_grey


@pytest.mark.parametrize("grey", [False, True])
def test_what_is_written_is_read(grey: bool) -> None:
    schema = image_schema(["a", "b/c", "dé"], grey=grey)
    assert class_names_in(schema, "label") == ("a", "b/c", "dé")
    assert is_grey(schema, "image") is grey
    assert class_names_in(schema, "image") is None


@pytest.mark.parametrize("metadata", [None, {"huggingface": "no json"}, {"huggingface": json.dumps({"info": []})}])
def test_other_metadata_say_nothing(metadata: dict[str, str] | None) -> None:
    schema = pa.schema([pa.field("label", pa.int64())], metadata=metadata)
    assert class_names_in(schema, "label") is None
    assert not is_grey(schema, "label")
