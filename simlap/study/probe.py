"""How long an epoch takes, from a few steps on this machine: for plans of what has never been run.

Each distinct shape (`estimate.shape`) of a plan is trained for a few steps in a process of its own, with torch and without Ray,
on random images. What is found is remembered under the shape, the machine and the code (`simlap.record.cache`). It counts
steps and the forward passes of what is measured along the way; decoding, fitting of classifiers, and what workers say to each
other are not in it.
"""

from __future__ import annotations

import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simlap.config import Experiment
from simlap.errors import UserError
from simlap.record import cache
from simlap.record.code import code_of
from simlap.record.provenance import processor

MAX_SHAPES = 8
"""Others are estimated from these."""
_WARM, _STEPS, _SECONDS, _MIN = 2, 20, 3.0, 3
"""Steps that are not timed, steps that are at most, seconds after which no further one is begun, and steps that are at least."""
_START_S, _SHAPE_S = 120.0, 60.0
"""Time that the process has to start in, and for each shape."""
_IMAGES = 256
"""Of the forward pass that stands for evaluation."""
_ROOM = 2**30
"""Bytes of random images at most."""


@dataclass(frozen=True)
class Probed:
    """What became of a probe."""

    done: int
    """Shapes that were timed now."""
    left: int
    """Shapes beyond `MAX_SHAPES`."""
    failed: tuple[str, ...] = ()
    """Why others could not be timed, in words."""


def known(shape: tuple[object, ...], experiment: Experiment) -> float | None:
    """Seconds of an epoch as a probe on this machine found them; None where there was none with this code."""
    found = cache.Cache("probes")
    key = _key(shape, experiment)
    return float(found[key]) if key in found else None


def probe(asked: Sequence[tuple[tuple[object, ...], Experiment]]) -> Probed:
    """Time the shapes that are not known yet, each by an experiment of it."""
    new = {key: e for shape, e in asked if (key := _key(shape, e)) not in cache.Cache("probes")}
    chosen = dict([*new.items()][:MAX_SHAPES])
    if not chosen:
        return Probed(0, 0)
    text = json.dumps([experiment.model_dump(mode="json") for experiment in chosen.values()])
    lines, end = _run(text, _START_S + _SHAPE_S * len(chosen))
    failed = []
    for (key, experiment), answer in zip(chosen.items(), [*lines, *[{"error": end}] * len(chosen)], strict=False):
        if "epoch_s" in answer:
            cache.Cache("probes").put(key, answer["epoch_s"])
        else:
            failed.append(f"{experiment.name}: {answer['error']}")
    cache.save()
    return Probed(len(chosen) - len(failed), len(new) - len(chosen), tuple(failed))


def _run(text: str, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """The answers of the process, one a shape, and how it ended where some are missing."""
    command = [sys.executable, "-m", "simlap.study.probe"]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        out: Any = error.stdout or ""  # bytes, whatever was asked for
        written, end = out.decode() if isinstance(out, bytes) else out, f"took more than {seconds:g} s"
    else:
        written, end = done.stdout, f"ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}"
    return [json.loads(line) for line in written.splitlines() if line.endswith("}")], end


def _key(shape: tuple[object, ...], experiment: Experiment) -> str:
    return json.dumps([shape, _machine(experiment.resources.gpus > 0), code_of(experiment)])


def _machine(gpu: bool) -> list[str]:
    """What computes. GPUs are asked of their driver: torch takes seconds."""
    names = [platform.node(), processor()]
    if gpu:
        for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
            names += [line for line in file.read_text().splitlines() if line.startswith("Model")]
    return names


def epoch_seconds(experiment: Experiment) -> float:
    """Train a few steps here and now. Needs torch. Raises UserError where this machine cannot, or the data are not there."""
    import torch

    from simlap.data.splits import inspect_data
    from simlap.run.device import set_threads
    from simlap.train.evaluate import Evaluator
    from simlap.train.step import build, train_epoch
    from simlap.train.world import World

    info = inspect_data(experiment.data)
    gpu = experiment.resources.gpus > 0
    if gpu and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here")
    world = World(device=torch.device("cuda" if gpu else "cpu"))
    set_threads(experiment.resources.cpus_per_worker)
    steps = info.num_train * experiment.data.repeated_augmentation // experiment.train.batch_size
    small = _of_one_worker(experiment)
    splits = _random_splits(small, info)
    state = build(small, splits, world)
    marks: list[float] = []
    taken: list[float] = []

    def look() -> bool:
        if gpu:
            torch.cuda.synchronize()
        marks.append(time.perf_counter())
        return len(taken) + len(marks) > _MIN + _WARM and marks[-1] - began > _SECONDS

    began = time.perf_counter()
    while len(taken) < _WARM + _STEPS and (len(taken) < _WARM + _MIN or time.perf_counter() - began < _SECONDS):
        marks.clear()
        train_epoch(state, look)
        look()
        taken += [after - before for before, after in itertools.pairwise(marks)]
        state.next_epoch()
    step = statistics.median(taken[_WARM:] or taken)
    Evaluator(state.evaluated, splits, world, small).features("val")
    look()
    Evaluator(state.evaluated, splits, world, small).features("val")
    look()
    assert splits.val is not None
    image = (marks[-1] - marks[-2]) / len(splits.val)
    return steps * step + image * _images_an_epoch(experiment, info.num_train, info.num_val or info.num_test)


def _of_one_worker(experiment: Experiment) -> Experiment:
    """What one of its workers does, starting from scratch and without waiting for a compiler."""
    train, workers = experiment.train, experiment.resources.workers
    rows = -(-train.batch_size // workers)
    return experiment.model_copy(
        update={
            "train": train.model_copy(update={"batch_size": rows, "compile": False}),
            "data": experiment.data.model_copy(update={"streaming": None, "fingerprint": None}),
            "backbone": experiment.backbone.model_copy(update={"weights": None}),
            "resources": experiment.resources.model_copy(update={"workers": 1}),
            "pretrain": None,
        }
    )


def _random_splits(experiment: Experiment, info: Any) -> Any:
    """Random images in place of the dataset, enough for a few batches."""
    import torch

    from simlap.config.schema import PKSampling
    from simlap.data.splits import ImageSet, Splits

    data, rows = experiment.data, experiment.train.batch_size
    size, channels, classes = data.stored_size or data.image_size, info.channels, info.num_classes
    count = 4 * rows
    if isinstance(data.sampling, PKSampling):
        count = max(count, classes * data.sampling.images)
    if (count + _IMAGES) * channels * size * size > _ROOM:
        count = rows
    if count * channels * size * size > _ROOM:
        raise UserError(f"a batch of {rows} images of {size} pixels is too large for a probe")
    generator = torch.Generator().manual_seed(0)

    def images(number: int) -> ImageSet:
        pixels = torch.randint(0, 256, (number, channels, size, size), generator=generator, dtype=torch.uint8)
        return ImageSet(pixels, torch.arange(number) % classes)

    half = (0.5,) * channels
    return Splits(
        images(count), images(_IMAGES), images(_IMAGES), info.class_names, half, half,
        image_size=data.image_size, eval_size=data.eval_size or data.image_size,
    )  # fmt: skip


def _images_an_epoch(experiment: Experiment, train: int, val: int) -> float:
    """Images that go through the backbone for what is measured along the way, of an average epoch."""
    of_val = [1 / e.every_epochs for e in experiment.evaluate if e.every_epochs]
    of_train = [1 / e.every_epochs for e in experiment.evaluate if e.every_epochs and e.kind in ("knn", "linear")]
    return val * max(of_val, default=0.0) + train * max(of_train, default=0.0)


def _main() -> None:
    """The process of its own: experiments on the standard input, a line for each on the standard output."""
    for tree in json.load(sys.stdin):
        try:
            answer: dict[str, Any] = {"epoch_s": epoch_seconds(Experiment.model_validate_json(json.dumps(tree)))}
        except Exception as error:  # noqa: BLE001 - an estimate that cannot be made stops nothing
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
