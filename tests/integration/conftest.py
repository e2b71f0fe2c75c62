"""One study, run undisturbed once for all tests of this folder."""

from __future__ import annotations

import pytest

from tests.integration.studies import Lab


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("undisturbed"))
    done = lab.ablate()
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no noise"
    assert "report.html" in done.stdout
    return lab
