"""A folder of packages that only one test sees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import packages


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """On the path, of processes to be started too; empty."""
    folder = tmp_path / "site"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        packages.use(patch, folder)
        yield folder
    packages.refresh(folder)
