"""A real S3 server for tests (moto's), and a link to it that misbehaves."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal
from unittest import mock

from pyarrow import fs as pafs

from tests.integration.servers import free_port, wait_until

Mood = Literal["well", "refusing", "silent", "slow"]
_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}


def query_of(port: int) -> str:
    """What stands behind `s3://bucket/folder?` to reach a server on this machine."""
    return f"endpoint_override=127.0.0.1%3A{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"


@contextmanager
def s3_server() -> Iterator[int]:
    """Starts one, and sets its credentials in the environment. Yields its port, once it answers."""
    port = free_port()
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        assert server.poll() is None, "the server ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until("the server", answers, timeout_s=60)
        with mock.patch.dict(os.environ, _CREDENTIALS):
            yield port
    finally:
        server.terminate()
        server.wait(10)


def make_bucket(port: int, name: str) -> str:
    """Its address, with the query."""
    uri = f"s3://{name}?{query_of(port)}"
    pafs.FileSystem.from_uri(uri)[0].create_dir(name)
    return uri


class Link:
    """Carries connections to a port of this machine, as its mood is: `refusing` closes them, the open ones too; `silent` takes
    them and lets nothing through; `slow` holds whatever is asked back for `delay_s`.
    """

    def __init__(self, port: int, *, delay_s: float = 0.3) -> None:
        self._target, self._delay_s = port, delay_s
        self._mood: Mood = "well"
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.met: dict[str, int] = {}
        """How often each mood was felt."""
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def mood(self) -> Mood:
        return self._mood

    @mood.setter
    def mood(self, mood: Mood) -> None:
        with self._lock:
            self._mood = mood
            if mood == "refusing":
                self._cut()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        with self._lock:
            self._cut()

    def _cut(self) -> None:
        for one in self._open:
            with suppress(OSError):  # the other side may have been first
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:  # closed: the test is over
                return
            with self._lock:
                if self._mood == "refusing":
                    self._met()
                    here.close()
                    continue
                there = socket.create_connection(("127.0.0.1", self._target))
                self._open |= {here, there}
            for source, sink, asks in ((here, there, True), (there, here, False)):
                threading.Thread(target=self._carry, args=(source, sink, asks), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, asks: bool) -> None:
        with suppress(OSError):  # one side is gone: so is the other, below
            while data := source.recv(65536):
                if asks and self._mood != "well":
                    with self._lock:
                        self._met()
                    if self._mood == "slow":
                        time.sleep(self._delay_s)
                while self._mood == "silent":
                    time.sleep(0.02)
                sink.sendall(data)
        with self._lock:
            self._open -= {source, sink}
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _met(self) -> None:
        self.met[self._mood] = self.met.get(self._mood, 0) + 1
