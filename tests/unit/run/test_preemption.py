"""SIGTERM is Ctrl-C with another word, also where Ctrl-C is ignored."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import signal, sys, time
from simlap.run.preemption import is_preempted, listen
{before}
listen()
assert not is_preempted()
try:
    print("listens", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    assert is_preempted() == ({number} == signal.SIGTERM)
    try:
        print("saves", flush=True)
        time.sleep({saves})
    except KeyboardInterrupt:
        sys.exit(8)
    sys.exit(7)
"""


@pytest.mark.parametrize(
    ("number", "before"),
    [
        (signal.SIGTERM, ""),
        (signal.SIGTERM, "signal.signal(signal.SIGINT, signal.SIG_IGN)"),
        (signal.SIGINT, ""),
    ],
    ids=["preempted", "preempted in the background of a shell", "Ctrl-C"],
)
def test_who_is_told(number: signal.Signals, before: str) -> None:
    program = PROGRAM.format(before=before, number=int(number), saves=0)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"listens\n"
    process.send_signal(number)
    assert process.wait(30) == 7


def test_a_second_notice_finds_it_saving() -> None:
    program = PROGRAM.format(before="", number=int(signal.SIGTERM), saves=1)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    for line in (b"listens\n", b"saves\n"):
        assert process.stdout.readline() == line
        process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 7
