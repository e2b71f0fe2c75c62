"""The tracking server is killed while eight processes journal: none of them notices, and nothing is lost or doubled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.outage import endure
from tests.integration.blank import blank_store
from tests.integration.servers import Server


@pytest.mark.slow
def test_nothing_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    (tmp_path / "server.db").write_bytes(blank_store())
    with Server(tmp_path, f"sqlite:///{tmp_path}/server.db") as server:
        came = endure(tmp_path, server, [6.0, 6.0])
    rates = (
        f"{came.rate(up=True):.1f} epochs/s with the server, {came.rate(up=False):.1f} without, ratio {came.ratio:.3f}"
    )
    print(rates)
    assert (came.lost, came.doubled) == (0, 0)
    assert came.rows > 8 * 20 * 12
    # while the server is there it takes part of this machine, so that without it there is rather more
    assert came.ratio > 0.8, rates
    assert came.log.count("tried again until it is back") == came.log.count("is back after") == 1
