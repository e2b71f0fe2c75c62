"""`simlap ablate --detach`: what can be said before, and what is said of a launch that begins, or does not."""

from __future__ import annotations

import os
import re
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import typer

from simlap import cli
from simlap.cli.detach import detach
from simlap.config import yaml
from simlap.storage import Storage
from tests.tiny import TREE

STUDY = """
name: small
base: base.yaml
factors: {filter: {path: method.gate.kind, levels: [gumbel, open]}}
baseline: {filter: gumbel}
seeds: 1
"""


@pytest.fixture
def instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A script that is started in place of Python; what it leaves running is ended with the test."""
    script = tmp_path / "instead.sh"
    script.write_text("")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(script))
    yield script
    if (pid := tmp_path / "pid").exists():
        os.kill(int(pid.read_text()), signal.SIGKILL)


def code_of(words: list[str], storage: Path) -> int:
    with pytest.raises(typer.Exit) as ended:
        detach(words, Storage(storage), "small")
    return int(ended.value.exit_code)


def test_a_launch_that_begins_is_left_to_itself(
    instead: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    events = runs / "studies/small/events"
    instead.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid\necho \"$@\" at work\nmkdir -p {events}\n"
        f"echo '{{}}' > {events}/0001-00000.jsonl\nexec sleep 600\n"
    )  # fmt: skip
    assert code_of(["ablate", "study.yaml"], runs) == 0
    said = capfd.readouterr().out
    pid = int((tmp_path / "pid").read_text())
    assert re.search(rf"started +process {pid}\n", said)
    assert f"simlap status small --storage {runs} --watch" in said
    (log,) = (runs / "studies/small").glob("launch-*.log")
    assert str(log) in said
    assert log.read_text() == "-m simlap.cli ablate study.yaml at work\n"
    assert os.getsid(pid) == pid != os.getsid(0), "it outlives the terminal"
    # what the user is told stops it, also where this process was a shell's background job
    assert f"kill -INT {pid}" in said
    os.kill(pid, signal.SIGINT)
    end = time.monotonic() + 30
    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_launch_that_ends_at_once_says_so_with_its_last_words(
    instead: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    instead.write_text("#!/bin/sh\necho a line on the way\necho error: no room >&2\nexit 2\n")
    assert code_of(["ablate", "study.yaml"], tmp_path / "runs") == 2
    said = capfd.readouterr()
    assert said.out == "a line on the way\nerror: no room\n"
    assert re.search(r"ended at once, with code 2; its log: .*launch-.*\.log", said.err)
    assert "started" not in said.out


def test_wrong_input_is_found_before(
    instead: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.yaml").write_text(yaml.dump(TREE))
    (tmp_path / "study.yaml").write_text(STUDY.replace("open", "opne"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["simlap", "ablate", "study.yaml", "--detach"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "did you mean 'open'" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists(), "nothing was started"
