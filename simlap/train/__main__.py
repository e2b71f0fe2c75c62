"""`python -m simlap.train FILE [a.b=value ...] --out DIR`: all stages of an experiment in plain PyTorch, also under torchrun.

Neither Ray nor MLflow. What was interrupted goes on where it stood. Each stage has a folder in DIR, with `config.yaml`,
`checkpoints/`, `result.json`, and what evaluations found beyond numbers in `evaluations/`.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from simlap.config import Experiment, load_experiment, yaml
from simlap.data.shared import shared_splits
from simlap.errors import ConfigError, UserError
from simlap.storage import Storage
from simlap.train.check import Stage, check_experiment
from simlap.train.checkpoint import CheckpointStore, find_checkpoint
from simlap.train.loop import Progress, fit
from simlap.train.weights import backbone_of
from simlap.train.world import World

INTERRUPTED, PREEMPTED = 130, 75
"""What shells say of a process that SIGINT, or SIGTERM, has ended."""


@dataclass
class _Files:
    """Writes what evaluations find; on rank 0 only."""

    folder: Storage
    first: bool
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)
    trained: bool = False
    """Whether an epoch was finished."""

    def start(self, epoch: int, step: int) -> None:
        if self.first and (epoch or step):
            print(f"  goes on after {epoch} epochs and {step} steps", flush=True)

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        self.trained = True
        if self.first:
            print(f"  epoch {epoch}: {_line(metrics)}", flush=True)

    def evaluated(self, evaluation_id: str, metrics: dict[str, float], artefact: dict[str, Any] | None = None) -> None:
        self.evaluations[evaluation_id] = metrics
        if self.first and artefact is not None:
            self.folder.write_json(f"evaluations/{evaluation_id}.json", artefact)

    def summary(self) -> str:
        """What came of this call, in a line."""
        if not self.evaluations:
            return "finished" if self.trained else "finished before"
        found = {name: value for metrics in self.evaluations.values() for name, value in metrics.items()}
        return _line({name: value for name, value in found.items() if name.startswith(("test/", "gates/"))})


class _Interrupt:
    """Ctrl-C and SIGTERM ask to save and stop; a second Ctrl-C leaves at once."""

    def __init__(self) -> None:
        self.asked = False
        self.number = signal.SIGINT
        """By what, first."""

    def __enter__(self) -> _Interrupt:
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self.number = True, signal.Signals(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code: 0, 2 for wrong input, 130 or 75 where Ctrl-C or SIGTERM has asked it to stop."""
    parser = argparse.ArgumentParser(prog="python -m simlap.train", description=__doc__.splitlines()[0])
    parser.add_argument("file", metavar="FILE", help="experiment file")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="settings that replace the file's")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the run; goes on with what is there")
    options = parser.parse_intermixed_args(arguments)
    try:
        experiment = load_experiment(options.file, options.overrides)
        stages = check_experiment(experiment, file=options.file)
        device = _device(experiment)
        if "WORLD_SIZE" in os.environ and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        world = World.current(device)
        with _Interrupt() as interrupt:
            folders = [Storage(options.out).child(name) for name in _folder_names(stages)]
            for stage, folder in zip(stages, folders, strict=True):
                _claim(folder, stage, world)
            for i, (stage, folder) in enumerate(zip(stages, folders, strict=True)):
                if not _run(stage, folder, folders[i - 1] if i else None, world, interrupt):
                    preempted = interrupt.number == signal.SIGTERM
                    print(f"{'preempted' if preempted else 'stopped'}; the same command goes on", file=sys.stderr)
                    return PREEMPTED if preempted else INTERRUPTED
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def _run(stage: Stage, folder: Storage, before: Storage | None, world: World, interrupt: _Interrupt) -> bool:
    """One stage from wherever it stands. False where it was asked to stop."""
    experiment = stage.experiment
    first = world.rank == 0
    if first:
        print(f"{experiment.name} ({folder.describe()})", flush=True)
    torch.set_num_threads(experiment.resources.cpus_per_worker)
    torch.backends.cudnn.deterministic = True
    known = folder.read_json("result.json")["evaluations"] if folder.exists("result.json") else {}
    files = _Files(folder, first)
    for progress in fit(
        experiment,
        shared_splits(experiment.data, stage.info.fingerprint),
        world=world,
        store=CheckpointStore(folder.child("checkpoints"), keep=experiment.checkpoint.keep),
        reporter=files,
        stop=lambda: interrupt.asked,
        known_evaluations=frozenset(known),
        start=_learnt(before) if before is not None else None,
    ):
        if progress.stopped:
            return False
        if progress.finished and first:
            _write_result(folder, progress, {**known, **files.evaluations})
            print(f"  {files.summary()}", flush=True)
    if world.size > 1:
        dist.barrier()  # the next stage reads what rank 0 has written
    return True


def _claim(folder: Storage, stage: Stage, world: World) -> None:
    """Make the folder this stage's; raise where it is another run's."""
    if folder.exists("stage.json"):
        found = folder.read_json("stage.json")["cell_id"]
        if found != stage.cell_id:
            raise ConfigError(
                f"{folder.describe()} holds another run ({found}, not {stage.cell_id}): the settings, the data or the "
                "weights that it starts from have changed; name another folder",
                key="--out",
            )
    if world.size > 1:
        dist.barrier()  # all have looked before rank 0 writes
    if world.rank == 0:
        folder.write("config.yaml", yaml.dump(stage.experiment.model_dump(mode="json")).encode())
        folder.write_json("stage.json", {"schema_version": 1, "cell_id": stage.cell_id, "start": stage.start})


def _learnt(folder: Storage) -> dict[str, Tensor]:
    """The backbone that a finished stage has learnt."""
    checkpoint = find_checkpoint(folder.uri)
    assert checkpoint is not None  # the stage has just run
    return backbone_of(checkpoint.model)


def _write_result(folder: Storage, progress: Progress, evaluations: dict[str, dict[str, float]]) -> None:
    checkpoint = progress.checkpoint
    assert checkpoint is not None  # the last epoch is always saved
    folder.write_json(
        "result.json",
        {
            "schema_version": 1,
            "epochs": progress.epoch,
            "evaluations": evaluations,
            "checkpoint": {"path": f"checkpoints/{checkpoint.path}", "sha256": checkpoint.sha256},
        },
    )


def _folder_names(stages: Sequence[Stage]) -> list[str]:
    return [re.sub(r"[^\w.-]+", "-", f"{i}-{stage.experiment.name}") for i, stage in enumerate(stages, start=1)]


def _device(experiment: Experiment) -> torch.device:
    """The GPU of this process, where the file asks for GPUs."""
    wanted = experiment.resources.gpus
    if wanted == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("there is no CUDA device here", key="resources.gpus_per_worker", value=wanted)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _line(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


if __name__ == "__main__":
    sys.exit(main())
