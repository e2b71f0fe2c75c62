"""simlap's loop and the straightforward one, each in a process of its own, taking turns. It has nothing to run by itself.

On a CPU, each process with all it starts is bound to as many cores as the recipe asks for, always the same: only one runs at a
time. What a step spends is told apart by marks: on a CPU in seconds of the processor, those of DataLoader workers counting as
`data`; on CUDA in seconds of the device's time line. They are set from outside: no loop knows that it is measured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from simlap.config import Experiment
from simlap.data.splits import Splits, load_splits

BACKBONE = ("backbone forward", "backbone backward")
_WARM_UP = 6
PHASES = ("data", *BACKBONE, "head and loss", "optimiser", "rest")
"""`head and loss`: projector, filter, probe, loss, metrics, forward and backward. `rest`: seeds, learning rate, logging."""


@dataclass(frozen=True)
class Round:
    """Figures of some steps of one loop."""

    images: int
    seconds: float
    """By the clock."""
    processor: float
    """Of the process and its DataLoader workers."""
    phases: dict[str, float]
    """Seconds by phase."""

    @property
    def outside(self) -> float:
        """Seconds that are not the backbone's."""
        return sum(seconds for name, seconds in self.phases.items() if name not in BACKBONE)


class Runner:
    """A loop in a process of its own.

    Args:
        kind: `straightforward`, else simlap's.
        experiment, splits: what to train.
        device: `cpu` or `cuda`.
    """

    def __init__(self, kind: str, experiment: Experiment, splits: Splits, device: str) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, kind, experiment, splits, device))
        self._process.start()
        theirs.close()

    def run(self, steps: int) -> Round:
        """Go on for so many steps."""
        self._pipe.send(steps)
        found = self._pipe.recv()  # EOFError where the process has died; it has said why
        assert isinstance(found, Round)
        return found

    def close(self) -> None:
        """End the process."""
        self._pipe.send(0)
        self._process.join()


def take_turns(loops: Mapping[str, Experiment], device: str, rounds: int, steps: int) -> dict[str, list[Round]]:
    """Rounds by loop. The straightforward loop makes half as many steps.

    Args:
        loops: what each of them trains; all on the same data. `straightforward`, else simlap's.
    """
    experiments = [*loops.values()]
    splits = load_splits(experiments[0].data)
    share = {name: max(1, steps // 2) if name == "straightforward" else steps for name in loops}
    runners = {name: Runner(name, experiment, splits, device) for name, experiment in loops.items()}
    for runner in runners.values():
        runner.run(_WARM_UP)
    found: dict[str, list[Round]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, runner in runners.items():
            found[name].append(runner.run(share[name]))
    for runner in runners.values():
        runner.close()
    return found


class Marks:
    """Time by phase: each mark gives its phase what has passed since the one before."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.begin()

    def begin(self) -> None:
        """Forget all, and start."""
        self._marks: list[tuple[str, Any]] = []
        self("begin")

    def __call__(self, phase: str) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((phase, event))
        else:
            self._marks.append((phase, time.process_time()))

    def totals(self) -> dict[str, float]:
        """Seconds by phase."""
        totals = dict.fromkeys(PHASES, 0.0)
        if self._cuda:
            torch.cuda.synchronize()
        for (_, before), (phase, after) in zip(self._marks, self._marks[1:], strict=False):
            totals[phase] += before.elapsed_time(after) / 1e3 if self._cuda else after - before
        return totals


class _Timed(nn.Module):
    """A backbone that marks when it begins and ends, forward and backward."""

    def __init__(self, backbone: nn.Module, marks: Marks) -> None:
        super().__init__()
        self.inner, self._marks = backbone, marks

    def forward(self, images: Tensor) -> Tensor:
        self._marks("rest")
        h: Tensor = self.inner(images)
        self._marks("backbone forward")
        h.register_hook(lambda _: self._marks("head and loss"))
        return h


class _TimedLoader:
    """A loader that marks the time its batches take."""

    def __init__(self, loader: Any, marks: Marks) -> None:
        self._loader, self._marks = loader, marks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return self._timed(iter(self._loader))

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        return self._timed(self._loader.batches(epoch, start_step=start_step))

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            self._marks("rest")
            batch = next(batches, None)
            self._marks("data")
            if batch is None:
                return
            yield batch


class _Simlap:
    """simlap's own loop, some steps at a time."""

    def __init__(self, experiment: Experiment, splits: Splits, device: torch.device) -> None:
        from simlap.train.memory import keep_freed_memory
        from simlap.train.step import build
        from simlap.train.world import World

        if device.type == "cpu":
            keep_freed_memory()  # as `simlap.train.loop.fit` does
        self.state = build(experiment, splits, World(device=device))
        self.model, self.optimizer = self.state.model, self.state.optimizer

    @property
    def loader(self) -> Any:
        return self.state.loader

    @loader.setter
    def loader(self, loader: Any) -> None:
        self.state.loader = loader

    def run(self, steps: int) -> None:
        from simlap.train.step import train_epoch

        left = steps

        def stop() -> bool:
            nonlocal left
            left -= 1
            return left < 0

        while left > 0:
            if train_epoch(self.state, stop):
                self.state.epoch, self.state.step, self.state.sums = self.state.epoch + 1, 0, {}

    def workers(self) -> list[int]:
        return []


def _serve(pipe: Connection, kind: str, experiment: Experiment, splits: Splits, device_name: str) -> None:
    device = torch.device(device_name)
    threads = experiment.resources.cpus_per_worker
    if device.type == "cpu":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    torch.set_num_threads(threads)
    loop: Any
    if kind == "straightforward":
        from benchmarks.straightforward import Loop

        loop = Loop(experiment, splits, device)
    else:
        loop = _Simlap(experiment, splits, device)
    marks = Marks(device)
    loop.loader = _TimedLoader(loop.loader, marks)
    loop.model.backbone = _Timed(loop.model.backbone, marks)
    loop.optimizer.register_step_pre_hook(lambda *_: marks("backbone backward"))
    loop.optimizer.register_step_post_hook(lambda *_: marks("optimiser"))
    batch = experiment.train.batch_size * experiment.data.augment.views
    spent = 0.0
    while steps := pipe.recv():
        marks.begin()
        began, began_processor = time.perf_counter(), time.process_time()
        loop.run(steps)
        marks("rest")
        phases = marks.totals()
        seconds = time.perf_counter() - began
        theirs = sum(_processor_time(pid) for pid in loop.workers())
        processor = time.process_time() - began_processor + theirs - spent
        if device.type == "cpu":
            phases["data"] += theirs - spent
        spent = theirs
        pipe.send(Round(steps * batch, seconds, processor, phases))


def _processor_time(pid: int) -> float:
    """Seconds that a process has used the processor for (Linux: clock_getcpuclockid)."""
    return time.clock_gettime((~pid << 3) | 2)
