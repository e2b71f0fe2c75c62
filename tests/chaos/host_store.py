"""An object store on a host of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.chaos.hosts import HEAD, STORE, Hosts


def serve_s3(hosts: Hosts, bucket: str) -> str:
    """Boot the store and start moto's server there. Returns the query of `s3://<bucket>/...?<query>`."""
    port = 5599
    hosts.boot(STORE)
    server = str(Path(sys.executable).with_name("moto_server"))
    hosts.popen(STORE, server, "-H", "0.0.0.0", "-p", str(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    query = f"endpoint_override={hosts.ip(STORE)}%3A{port}&scheme=http&region=us-east-1"
    create = f"""
import socket, time
from pyarrow import fs
end = time.monotonic() + 90
while socket.socket().connect_ex(({hosts.ip(STORE)!r}, {port})):
    assert time.monotonic() < end, "the server does not answer"
    time.sleep(0.2)
fs.FileSystem.from_uri("s3://{bucket}/x?{query}&allow_bucket_creation=true")[0].create_dir({bucket!r})
"""
    done = hosts.call(HEAD, sys.executable, "-c", create)
    assert done.returncode == 0, done.stderr
    return query


def fetch_s3(hosts: Hosts, uri: str, folder: Path) -> None:
    """Copy all objects below an address to a folder here."""
    copy = "import sys; from pyarrow import fs; fs.copy_files(sys.argv[1], sys.argv[2])"
    done = hosts.call(HEAD, sys.executable, "-c", copy, uri, f"file://{folder}")
    assert done.returncode == 0, done.stderr
