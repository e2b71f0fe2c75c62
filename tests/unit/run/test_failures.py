"""Which failures are tried again, and how often."""

from __future__ import annotations

import traceback

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simlap.errors import ConfigError, DataError, UserError
from simlap.run.device import DeviceMemoryError
from simlap.run.failures import KINDS, LOST_IN_A_ROW, History, Kind, Retries, classify
from simlap.run.worker import SupersededError
from simlap.train.features import DivergedError

DIED = """The actor died unexpectedly before finishing this task.
	class_name: CellTrainable
	pid: 4211
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly
exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed by SIGKILL by OOM
killer due to high memory usage."""
PRESSURE = """ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.1) was 30.17GB / 31.06GB (0.97), which exceeds the memory usage threshold of 0.95."""
BORN_DEAD = """The actor died because of an error raised in its creation task, ray::Sleeper.__init__() (pid=1, ip=10.0.0.1)
  File "/opt/ray/tune/trainable/trainable.py", line 1, in __init__
ModuleNotFoundError: No module named 'sleeper'"""
NODE = "ray.exceptions.NodeDiedError: Task failed because the node it was running on is dead or unavailable. Node IP: 10.0.0.2"

AWAY = """The actor 28bfd00f5922cd4e1cefa9bd01000000 is unavailable: The actor is temporarily unavailable: RpcError: RPC error:
Socket closed rpc_code: 14. The task may or may not have been executed on the actor."""


def left(error: BaseException) -> tuple[str, str]:
    """Reason and text, as a worker's journal has them."""
    return f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConfigError("no such dataset", file="x.yaml"), "user"),
        (DataError("a file is missing: connection reset, out of memory, MemoryError"), "user"),
        (UserError("wrong"), "user"),
        (ValueError("shapes do not match"), "user"),
        (KeyError("no such name"), "user"),
        (DivergedError("train/loss is nan"), "user"),
        (SupersededError("attempt 2 has taken over"), "user"),
        (DeviceMemoryError("out of GPU memory (the run may use all of it)"), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (RuntimeError("NCCL communicator was aborted"), "other"),
        (OSError("disk quota exceeded"), "other"),
        (ConnectionResetError("reset by peer"), "other"),
        (RuntimeError("[/third_party/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:7"), "lost"),
        (RuntimeError("worker 0 (process 3014) has ended; worker 1 waited for it"), "lost"),
        (RuntimeError("worker 1 has waited 600 s for worker 0 (process 3014)"), "lost"),
        (RuntimeError("[/third_party/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 600000ms for recv"), "lost"),
    ],
)  # fmt: skip
def test_errors_that_a_worker_could_write(error: Exception, kind: Kind) -> None:
    assert classify(*left(error)) == kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (DIED, "lost"),
        (NODE, "lost"),
        (NODE.partition(": ")[2], "lost"),
        (AWAY, "lost"),
        ("the process died", "lost"),
        ("Training failed due to controller error:\nThe worker group startup timed out after 60.0 seconds", "lost"),
        ("ray.exceptions.ActorDiedError: " + DIED, "lost"),
        (BORN_DEAD, "user"),
        (PRESSURE, "out_of_memory"),
        ("RayActorError: the actor died\n" + PRESSURE, "out_of_memory"),
        ("Traceback (most recent call last):\n  File ...\nray.exceptions.RayTaskError(ValueError): ray::step()", "user"),
        ("something that nobody foresaw", "other"),
    ],
)  # fmt: skip
def test_processes_that_died_without_a_word(text: str, kind: Kind) -> None:
    assert classify(None, text) == kind
    assert classify(text.splitlines()[-1], text) == kind


def test_a_user_error_is_never_tried_again() -> None:
    decision = History().decide("user", 3, Retries(other=5), can_grow=True)
    assert not decision.again


def test_out_of_memory_is_tried_once_with_a_larger_share() -> None:
    history = History()
    first = history.decide("out_of_memory", 0, Retries(), can_grow=True)
    assert (first.again, first.larger) == (True, True)
    assert not history.decide("out_of_memory", 0, Retries(), can_grow=True).again
    assert not History().decide("out_of_memory", 0, Retries(), can_grow=False).again


def test_other_failures_are_tried_so_many_times() -> None:
    history = History()
    assert [history.decide("other", epoch, Retries(other=2), can_grow=True).again for epoch in range(4)] == [
        True, True, False, False,
    ]  # fmt: skip


def test_lost_processes_do_not_count_while_the_cell_gets_on() -> None:
    history = History()
    for epoch in range(3 * LOST_IN_A_ROW):
        assert history.decide("lost", epoch, Retries(other=0), can_grow=True).again
    again = [history.decide("lost", epoch, Retries(other=0), can_grow=True).again for _ in range(LOST_IN_A_ROW)]
    assert again == [True] * (LOST_IN_A_ROW - 1) + [False]


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 3)), min_size=40, max_size=200), st.integers(0, 4))
def test_every_cell_comes_to_an_end(failures: list[tuple[Kind, int]], other: int) -> None:
    """A cell that only ever fails is given up: no sequence of failures is tried for ever."""
    history, retries = History(), Retries(other=other)
    bound = (3 + 1) * LOST_IN_A_ROW + other + retries.out_of_memory + 1
    tries = 0
    for kind, epoch in failures * 10:
        tries += 1
        if not history.decide(kind, epoch, retries, can_grow=True).again:
            break
    assert tries <= bound


@given(st.text(), st.text())
def test_any_text_has_a_kind(reason: str, error: str) -> None:
    assert classify(reason, error) in KINDS
