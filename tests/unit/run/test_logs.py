"""What a cell prints, kept with it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from simlap.run.logs import list_logs, read_log
from simlap.storage import Storage


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: standard output is redirected as a whole."""
    text = f"""
import os, sys, time
from simlap.run.logs import CellLog
from simlap.storage import Storage
cell = Storage({str(folder)!r})
{textwrap.dedent(code)}
"""
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True)


def test_everything_that_is_printed_goes_to_the_attempts_log(tmp_path: Path) -> None:
    done = run(
        """
        print("before")
        with CellLog(cell, 1):
            print("from Python")
            print("an error", file=sys.stderr)
            os.system("echo a child")
        print("between")
        with CellLog(cell, 2, rank=1):
            print("the next one")
        print("after", file=sys.stderr)
        """,
        tmp_path,
    )
    assert (done.stdout, done.stderr) == ("before\nbetween\n", "after\n")
    assert list_logs(Storage(tmp_path)) == ["0001.log", "0002-rank1.log"]
    _, text = read_log(Storage(tmp_path), "0001.log")
    assert sorted(text.decode().splitlines()) == ["a child", "an error", "from Python"]
    assert read_log(Storage(tmp_path), "0002-rank1.log") == (0, b"the next one\n")


def test_the_last_of_a_long_log_is_kept(tmp_path: Path) -> None:
    run(
        """
        with CellLog(cell, 1, most=100, every_s=0.01):
            for number in range(2000):
                print(f"line {number:04d}", flush=True)
                if number % 100 == 0:
                    time.sleep(0.02)
        """,
        tmp_path,
    )
    before, text = read_log(Storage(tmp_path), "0001.log")
    assert len(text) == 100
    assert text.endswith(b"line 1999\n")
    assert 0 < before <= 2000 * 10 - 100


def test_it_is_published_while_the_cell_runs(tmp_path: Path) -> None:
    done = run(
        """
        with CellLog(cell, 1, every_s=0.05):
            print("still running")
            while not cell.exists("logs/0001.log"):
                time.sleep(0.01)
            seen = cell.read("logs/0001.log")
        print(seen.decode(), end="")
        """,
        tmp_path,
    )
    assert done.stdout == "still running\n"


def test_a_cell_that_prints_nothing_has_no_log(tmp_path: Path) -> None:
    run("with CellLog(cell, 1): pass", tmp_path)
    assert list_logs(Storage(tmp_path)) == []


def test_a_storage_that_fails_costs_the_log_and_not_the_run(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    done = run('with CellLog(cell, 1): print("x")\nprint("goes on")', tmp_path)
    assert done.stdout == "goes on\n"
    assert "could not be written" in done.stderr


def test_nothing_is_written_twice(tmp_path: Path) -> None:
    done = run(
        """
        written = []
        write = Storage.write
        Storage.write = lambda self, path, data: (written.append(path), write(self, path, data))
        with CellLog(cell, 1, every_s=0.01):
            print("x", flush=True)
            time.sleep(0.2)
        print(len(written))
        """,
        tmp_path,
    )
    assert done.stdout == "1\n"
