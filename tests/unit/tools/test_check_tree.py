"""The tree check finds what it is there to find."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools.check_tree import HOSTS, host_findings, main, pin_findings


@pytest.mark.parametrize("host", HOSTS)
def test_a_registry_host_is_found_with_its_line(host: str) -> None:
    assert host_findings("a.md", f"first\nsee https://{host.upper()}/x") == [
        f"a.md:2: names the package registry {host}"
    ]


def test_other_hosts_are_no_finding() -> None:
    assert host_findings("a.md", "https://arxiv.org/abs/2410.18200 and 127.0.0.1") == []


@pytest.mark.parametrize(
    "line",
    [
        "torch @ https://example.com/torch.whl",
        "--index-" + "url https://example.com/simple",
        "torch>=2.11",
        "torch==2.15.0 --hash=sha256:00",
        "torch==2.15.0+cpu",
        "",
    ],
)
def test_what_is_not_a_plain_pin_is_found(line: str) -> None:
    assert len(pin_findings("c.txt", f"numpy==2.4.6\n{line}\nscipy==1.17.1 ; python_full_version < '3.12'\n")) == 1


def test_the_whole_tree_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "constraints.txt").write_text("numpy==2.4.6\n")
    (tmp_path / ".gitignore").write_text("ignored.txt\n")
    (tmp_path / "ignored.txt").write_text(HOSTS[0])
    assert main(tmp_path) == 0
    (tmp_path / "new.txt").write_text(HOSTS[0])
    assert main(tmp_path) == 1
    assert "new.txt:1" in capsys.readouterr().err
