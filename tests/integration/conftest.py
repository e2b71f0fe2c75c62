"""One study, run undisturbed once for all tests of this folder, in whichever of pytest's processes they are."""

from __future__ import annotations

import os

import pytest
from filelock import FileLock

from tests.integration.studies import Lab


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    base = tmp_path_factory.getbasetemp()
    # with pytest-xdist every process has a folder of its own in the one of this run
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed"
    with FileLock(f"{folder}.lock"):
        lab, finished = Lab(folder), folder / "finished"
        if not finished.exists():
            done = lab.ablate()
            assert done.returncode == 0, done.stderr
            assert done.stderr == "", "no noise"
            assert "report.html" in done.stdout
            finished.touch()
    return lab
