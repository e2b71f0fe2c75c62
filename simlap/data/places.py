"""Where data lie: local paths and pyarrow.fs URIs."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from simlap.errors import DataError
from simlap.redact import refuse_credentials


def filesystem(key: str, uri: str) -> tuple[Any, str]:
    """The pyarrow file system of a local path or URI, and the path on it. Raises DataError at `key`, UserError for secrets."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    refuse_credentials(uri, "address", key=key)
    try:
        opened, root = pafs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise DataError(str(error), key=key, value=uri) from error
    return opened, posixpath.normpath(root)
