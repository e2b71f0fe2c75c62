"""One folder on any file system pyarrow knows: a local path, NFS, `s3://...`.

Assumed of the file system: whole objects are written, read, listed and deleted. No append, no rename. On local disks a write
goes through a temporary file, so that a reader sees all of an object or none of it, as on an object store.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import random
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs as pafs

from simlap.errors import UserError
from simlap.redact import refuse_credentials

_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Between tries of a storage that is elsewhere; its client has tried a few times before each."""
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Answers, not trouble."""
_REFUSED = re.compile(r"AWS Error (?:NO_SUCH_BUCKET|ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH)")
"""Likewise."""
_log = logging.getLogger("simlap.storage")
_unproven = False
"""Whether no storage that is elsewhere has answered yet, in a process that somebody waits for."""
Result = TypeVar("Result")


class StorageError(OSError):
    """A storage that is elsewhere does not answer, or refuses."""


class StorageFullError(OSError):
    """There is no space left (or no quota) for what is to be written. What is there stays as it is."""

    def __str__(self) -> str:
        return f"no space left: {self.strerror}; make room there and run the same command"


def expect_an_answer() -> None:
    """From now on, until a storage that is elsewhere has answered for the first time in this process, it is not waited for: what
    its user wrote may be wrong. For commands, before they begin."""
    global _unproven
    _unproven = True


@contextlib.contextmanager
def _told_where_full(target: str, size: int) -> Iterator[None]:
    """Says which place is full, and how full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        folder = next(folder for folder in Path(target).parents if folder.exists())
        free = shutil.disk_usage(folder).free
        quota = "; the quota is used up" if error.errno == errno.EDQUOT else ""
        needed = f"{target} needs {size:,} bytes, {free:,} are free{quota}"
        raise StorageFullError(error.errno, needed) from error


class Storage:
    """A folder on a file system. Paths given to the methods are relative to it, with forward slashes."""

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.uri = os.fspath(uri)
        if "://" in self.uri:
            refuse_credentials(self.uri, "storage")
            try:
                self._fs, self._root = pafs.FileSystem.from_uri(self.uri)
            except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
                raise UserError(f"storage {self.uri!r}: {error}") from error
        else:
            self.uri = str(Path(self.uri).expanduser().absolute())
            self._fs, self._root = pafs.LocalFileSystem(), self.uri
        self._root = self._root.rstrip("/")

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.uri,)

    @property
    def is_local(self) -> bool:
        return isinstance(self._fs, pafs.LocalFileSystem)

    def child(self, *parts: str) -> Storage:
        """The storage of a folder inside this one."""
        base, _, query = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        return Storage("/".join((base.rstrip("/"), *parts)) + (f"?{query}" if query else ""))

    def local_path(self, path: str = "") -> Path | None:
        """The path on this machine's disk, or None where the storage is elsewhere."""
        return Path(self._at(path)) if self.is_local else None

    def describe(self, path: str = "") -> str:
        """The place in words a user can paste."""
        return self._at(path) if self.is_local else self.child(path).uri if path else self.uri

    def exists(self, path: str = "") -> bool:
        found = self._trying(path, lambda: self._fs.get_file_info(self._at(path)))
        return bool(found.type != pafs.FileType.NotFound)

    def list(self, path: str = "") -> list[str]:
        """Names of the direct children of a folder, sorted; empty where there is no such folder."""
        selector = pafs.FileSelector(self._at(path), allow_not_found=True)
        try:
            found = self._trying(path, lambda: self._fs.get_file_info(selector))
        except FileNotFoundError:  # made between Arrow's opening of it and its look whether it exists: now it does
            found = self._fs.get_file_info(selector)
        return sorted(info.base_name for info in found if ".tmp-" not in info.base_name)

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError."""

        def read() -> bytes:
            with self._fs.open_input_stream(self._at(path)) as stream:
                data: bytes = stream.read()
            return data

        return self._trying(path, read)

    def write(self, path: str, data: bytes) -> None:
        """Write a whole object, replacing what was there. Raises StorageFullError."""
        target = self._at(path)
        if not self.is_local:

            def write() -> None:
                with self._fs.open_output_stream(target) as stream:
                    stream.write(data)

            self._trying(path, write)
            return
        with _told_where_full(target, len(data)):
            _replace(target, data)

    def create(self, path: str, data: bytes) -> bool:
        """Write a whole object unless there is one. Whether it was written.

        On a local disk (and NFS) one of several who try at the same moment succeeds; elsewhere all may, and the last one's
        stays. Not forced to the disk: for what means nothing after a power failure.
        """
        target = self._at(path)
        if not self.is_local:
            if self.exists(path):
                return False
            self.write(path, data)
            return True
        with _told_where_full(target, len(data)):
            return _link(target, data)

    def delete(self, path: str) -> None:
        """Delete an object or a folder with all it holds; nothing happens where there is none."""

        def delete() -> None:
            kind = self._fs.get_file_info(self._at(path)).type
            if kind == pafs.FileType.Directory:
                self._fs.delete_dir(self._at(path))
            elif kind != pafs.FileType.NotFound:
                self._fs.delete_file(self._at(path))

        self._trying(path, delete)

    def _trying(self, path: str, action: Callable[[], Result]) -> Result:
        """Do it; where the storage is elsewhere, again after a pause when that fails. Whatever is done may be done twice: whole
        objects are read, written and deleted. Raises StorageError where it fails for good, UserError where it never answered."""
        global _unproven
        if self.is_local:
            return action()
        pauses = iter(() if _unproven else _PAUSES_S)
        while True:
            try:
                result = action()
            except _FINAL:
                _unproven = False
                raise
            except OSError as error:
                if _unproven:
                    raise UserError(f"storage {self.uri!r} does not answer, or refuses: {error}") from error
                pause = next(pauses, None)
                if pause is None or _REFUSED.search(str(error)):
                    raise StorageError(f"storage {self.describe(path)}: {error}") from error
                _log.warning("%s: %s; tried again in %g s", self.describe(path), error, pause)
                time.sleep(pause * random.uniform(0.5, 1.5))
            else:
                _unproven = False
                return result

    def read_json(self, path: str) -> Any:
        return json.loads(self.read(path))

    def write_json(self, path: str, value: object) -> None:
        self.write(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root


def _replace(target: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = f"{target}.tmp-{uuid.uuid4().hex[:8]}"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _link(target: str, data: bytes) -> bool:
    """Whether there was no such file before."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = Path(f"{target}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_bytes(data)
        os.link(temporary, target)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True
