"""The search for planted secrets finds them wherever they are packed."""

from __future__ import annotations

import base64
import gzip
import io
import sqlite3
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.canaries import ADDRESS, CANARIES, leaks, leaks_below

SECRET = CANARIES["WANDB_API_KEY"]


def _zip(text: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.gz", gzip.compress(text.encode()))
    return data.getvalue()


def _parquet(text: str) -> bytes:
    data = io.BytesIO()
    pq.write_table(pa.table({"a": [text]}), data, compression="zstd")
    return data.getvalue()


def _page(text: str) -> bytes:
    return (
        b'<p></p><script type="application/gzip" id="x">'
        + base64.b64encode(gzip.compress(text.encode()))
        + b"</script>"
    )


def _sqlite(text: str) -> bytes:
    store = sqlite3.connect(":memory:")
    store.execute("create table x (y text)")
    store.execute("insert into x values (?)", ("a" * (4096 - 50) + text,))
    store.commit()
    return store.serialize()


@pytest.mark.parametrize("pack", [str.encode, _zip, _parquet, _page, _sqlite])
def test_a_secret_is_found(pack: object, tmp_path: Path) -> None:
    assert callable(pack)
    packed = pack(f"before {SECRET} after " * 20)
    assert any(found.endswith("WANDB_API_KEY") for found in leaks("x", packed))
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.bin").write_bytes(packed)
    assert leaks_below(tmp_path)
    assert leaks("x", pack("nothing here " * 20)) == []


def test_what_is_escaped_is_found() -> None:
    assert leaks("x", b"canary%2Faws%2B5f1c%2Fkey") == ["x: AWS_SECRET_ACCESS_KEY"]
    assert leaks("x", b'{"a": "canary \\"quoted\\" 5f1c"}') == ["x: SOME_SERVICE_PASSPHRASE"]
    assert leaks("x", f"http://me:{ADDRESS}@host".encode()) == ["x: the address"]
