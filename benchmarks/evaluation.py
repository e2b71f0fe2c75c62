"""What evaluation along the way adds to training: features, probe, collapse, k-NN, in seconds of the processor.

    python benchmarks/evaluation.py [--recipe FILE ...] [--steps 32] [--device cpu|cuda]

The recipes as they stand, with `channels_last`. An epoch without evaluation is measured by some of its steps; every protocol by
itself, after the features that it needs. `along the way`: what probe, collapse and k-NN add to the mean epoch on the selection
split, some every so many epochs, all of them after the last. `at the end`: the same on the test split, once a run, as a share of
all epochs. On CUDA, seconds of the clock. The table also goes to benchmarks/results/evaluation-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from simlap.config import Experiment, load_experiment, override
from simlap.data.splits import load_splits
from simlap.record.provenance import collect
from simlap.train.evaluate import Evaluator
from simlap.train.memory import keep_freed_memory
from simlap.train.step import TrainState, build, train_epoch
from simlap.train.world import World

RECIPES = {
    "cpu": ["experiments/cifar10_resnet18_small.yaml", "experiments/digits.yaml"],
    "cuda": ["experiments/cifar10_resnet18.yaml"],
}
RESULTS = Path(__file__).parent / "results"
WARM_UP = 4
COUNTED = ("probe", "knn", "collapse")
"""Protocols that the aim of 5 % is about."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", nargs="+")
    parser.add_argument("--steps", type=int, default=32, help="of training")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    device: str = arguments.device
    found = {}
    for recipe in arguments.recipe or RECIPES[device]:
        found[recipe] = figures = measure(load_experiment(recipe), torch.device(device), arguments.steps)
        table = Table(recipe, "seconds", "% of an epoch", box=None)
        for name, seconds in figures.items():
            table.add_row(name, f"{seconds:.4f}", f"{100 * seconds / figures['epoch without']:.2f}")
        Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"evaluation-{device}.json").write_text(
        json.dumps({"seconds": found, "machine": collect()}, indent=1) + "\n"
    )


def measure(experiment: Experiment, device: torch.device, steps: int) -> dict[str, float]:
    """Seconds by what is done."""
    experiment = override(experiment, [("train.channels_last", True)])
    torch.set_num_threads(experiment.resources.cpus_per_worker)
    if device.type == "cpu":
        keep_freed_memory()  # as `simlap.train.loop.fit` does
    splits, world = load_splits(experiment.data), World(device=device)
    state = build(experiment, splits, world)

    def timed(work: Callable[[], Any]) -> float:
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        began = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - began

    _train(state, WARM_UP)
    epoch = timed(lambda: _train(state, steps)) / steps * state.loader.steps_per_epoch
    Evaluator(state.evaluated, splits, world, experiment).features("test")
    evaluator = Evaluator(state.evaluated, splits, world, experiment)
    selection, epochs = evaluator.selection, experiment.train.epochs
    figures = {"epoch without": epoch}
    for split in dict.fromkeys((selection, "train", "test")):
        figures[f"features, {split}"] = timed(lambda split=split: evaluator.features(split))  # type: ignore[misc]
    along = figures[f"features, {selection}"]
    once = final = 0.0
    if selection != "test":
        final += figures["features, test"]
    for evaluation in experiment.evaluate:
        both = timed(lambda evaluation=evaluation: evaluator.final(evaluation))  # type: ignore[misc]
        seconds = timed(lambda evaluation=evaluation: evaluator.along(evaluation))  # type: ignore[misc]
        figures[f"{evaluation.kind}, {selection}"] = seconds
        figures[f"{evaluation.kind}, both"] = both
        if evaluation.kind in COUNTED:
            along += seconds / (evaluation.every_epochs or epochs)
            once += figures["features, train"] if evaluation.kind == "knn" else 0.0
            final += both
    figures["along the way, mean epoch"] = along + once / epochs
    figures["at the end, by epoch"] = final / epochs
    return figures


def _train(state: TrainState, steps: int) -> None:
    left = steps

    def stop() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    while left > 0:
        if train_epoch(state, stop):
            state.epoch, state.step, state.sums = state.epoch + 1, 0, {}


if __name__ == "__main__":
    main()
