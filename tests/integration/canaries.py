"""Secrets that are planted in an environment, and a search for them in every byte that a launch leaves."""

from __future__ import annotations

import base64
import gzip
import io
import re
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq

CANARIES = {
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow-5f1c",
    "AWS_SECRET_ACCESS_KEY": "canary/aws+5f1c/key",
    "RAY_AUTH_TOKEN": "canary5f1c0ray0token0of0enough0length0",
    "HF_TOKEN": "hf_canary5f1c",
    "WANDB_API_KEY": "canary-wandb-5f1c",
    "SOME_SERVICE_PASSPHRASE": 'canary "quoted" 5f1c',
}
"""By environment variable."""
ADDRESS = "canary-address-5f1c"
"""The password of an address on the command line."""
SIGNATURE = "canary-signature-5f1c"
"""A parameter of an address in an error message, that nothing else knows."""
MARK = "the leak begins"

_PACKED = re.compile(rb'<script type="application/gzip"[^>]*>([^<]*)</script>')

LEAK = f'''
import os
import sys


def leak():
    """Tell everything in an error, where a cell is run."""
    if not any("default_worker" in word for word in sys.argv):
        return
    names = {list(CANARIES)!r}
    told = ", ".join(f"{{name}}={{os.environ[name]}}" for name in names)
    print("{MARK}", told, flush=True)
    print("{MARK}", told, file=sys.stderr, flush=True)
    os.system("echo {MARK} $WANDB_API_KEY")
    raise ConnectionError(
        f"{MARK}: postgresql://me:{{os.environ['MLFLOW_TRACKING_PASSWORD']}}@host/db, "
        f"https://host/x?sig={SIGNATURE}&v=1: {{told}}"
    )
'''
"""A module; `leak` raises."""


def forms() -> dict[bytes, str]:
    """What is looked for, and whose it is."""
    user = base64.b64encode(f"me:{CANARIES['MLFLOW_TRACKING_PASSWORD']}".encode())
    found = {user: "MLflow's header", ADDRESS.encode(): "the address", SIGNATURE.encode(): "the signature"}
    for name, value in CANARIES.items():
        found |= {form.encode(): name for form in (value, quote(value, safe=""), value.replace('"', '\\"'))}
    return found


def leaks(name: str, data: bytes) -> list[str]:
    """Places below `name` where a canary is, packed or not."""
    found = [f"{name}: {whose}" for form, whose in forms().items() if form in data]
    for inner, content in _inside(name, data):
        found += leaks(inner, content)
    return found


def leaks_below(folder: Path) -> list[str]:
    """The same of all files in a folder."""
    return [
        leak for path in sorted(folder.rglob("*")) if path.is_file() for leak in leaks(str(path), path.read_bytes())
    ]


def _inside(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """What is packed in a file."""
    if data.startswith(b"\x1f\x8b"):
        yield f"{name}, unpacked", gzip.decompress(data)
    elif data.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.namelist():
                yield f"{name}, {member}", archive.read(member)
    elif data.startswith(b"PAR1"):
        table = pq.read_table(io.BytesIO(data))
        yield f"{name}, rows", repr((table.to_pylist(), table.schema.metadata)).encode()
    elif data.startswith(b"SQLite format 3"):
        store = sqlite3.connect(":memory:")  # long values lie in pieces
        store.deserialize(data)
        yield f"{name}, rows", "\n".join(store.iterdump()).encode()
        store.close()
    for place, packed in enumerate(_PACKED.findall(data)):
        yield f"{name}, script {place}", gzip.decompress(base64.b64decode(packed))
