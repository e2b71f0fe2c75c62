"""The training loop: epochs of steps, evaluation along the way, exact resume. Plain PyTorch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from simlap.config import Experiment, evaluation_id
from simlap.data.splits import Splits
from simlap.train.alike import check_alike
from simlap.train.checkpoint import Checkpoint, CheckpointStore
from simlap.train.evaluate import DivergedError, Evaluator
from simlap.train.memory import keep_freed_memory
from simlap.train.optim import learning_rate
from simlap.train.saving import Saver
from simlap.train.spikes import count_spikes
from simlap.train.step import TrainState, build, train_epoch
from simlap.train.stopping import Stopping
from simlap.train.world import World

RARE = ("train/skipped_steps", "train/loss_spikes")
"""Metrics of the epochs in which there is something to count."""


class Reporter(Protocol):
    """Where the numbers go. Called on every worker; only rank 0 has anything to write."""

    def start(self, epoch: int, step: int) -> None:
        """Training (re)starts after so many finished epochs and steps."""

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """An epoch is finished. Called before the checkpoint that covers it."""

    def evaluated(self, evaluation_id: str, metrics: dict[str, float], artefact: dict[str, Any] | None = None) -> None:
        """A protocol has been run on the final checkpoint. Artefact: what else it found, as JSON."""


@dataclass
class Progress:
    """What `fit` yields after each epoch, and once more at the end."""

    epoch: int
    metrics: dict[str, float]
    finished: bool = False
    stopped: bool = False
    checkpoint: Checkpoint | None = None
    """The newest one that is durable: of this epoch at the end and where it was stopped, else perhaps of an earlier one."""


def fit(
    experiment: Experiment,
    splits: Splits,
    *,
    world: World,
    store: CheckpointStore,
    reporter: Reporter,
    stop: Callable[[], bool] = lambda: False,
    known_evaluations: frozenset[str] = frozenset(),
    start: Mapping[str, Tensor] | None = None,
    until: int | None = None,
) -> Iterator[Progress]:
    """Train from the newest checkpoint to the last epoch, then evaluate on the test split.

    Yields after every epoch, its row reported, and at the end, its last checkpoint durable. Checkpoints are written while the
    next epoch trains, and are durable when the iterator is closed; what goes wrong there is raised at the end of an epoch.
    `stop` is asked between steps; a stopped run saves its state, where the experiment says so, and yields `stopped`.

    Args:
        experiment: the stage to run; earlier stages are over, and known by `start`.
        splits: its data.
        world: the data-parallel world.
        store: of its checkpoints.
        reporter: told of every epoch and every final evaluation.
        stop: whether to stop, asked on every worker; one that says so is enough.
        known_evaluations: ids of final evaluations that need not be repeated.
        start: backbone weights that a fresh run starts from (see `build`); where a checkpoint exists, that counts.
        until: an epoch before the last, at whose end the run saves its state and yields `stopped`; to be resumed like any other.

    Raises:
        DivergedError: too many steps in a row were not finite, or a metric is not.
        DriftError: the workers' states have drifted apart; the newest checkpoint is of before.
        ConfigError: weights to start from that do not fit.
        OSError: a checkpoint could not be written.
    """
    if world.device.type == "cpu":
        keep_freed_memory()
    checkpoint = _newest(store, world)
    state = build(experiment, splits, world, start, checkpoint)
    reporter.start(state.epoch, state.step)
    saver = Saver(store if world.rank == 0 else None, checkpoint)
    try:
        yield from _train(state, splits, saver, reporter, Stopping(world, stop), known_evaluations, until)
    finally:
        saver.close()


def _train(
    state: TrainState,
    splits: Splits,
    saver: Saver,
    reporter: Reporter,
    stop: Stopping,
    known_evaluations: frozenset[str],
    until: int | None,
) -> Iterator[Progress]:
    experiment, world, epochs = state.experiment, state.world, state.experiment.train.epochs
    last = epochs if until is None else min(until, epochs)
    evaluator = Evaluator(state.evaluated, splits, world, experiment)
    while state.epoch < last:
        started, first_step = time.perf_counter(), state.step
        if not train_epoch(state, stop):
            if experiment.checkpoint.on_stop:
                _save(state, saver)
            yield Progress(state.epoch, {}, stopped=True, checkpoint=saver.wait())
            return
        metrics = _epoch_metrics(state)
        state.next_epoch()
        trained = time.perf_counter()
        rows = experiment.train.batch_size * experiment.data.augment.views
        evaluator = Evaluator(state.evaluated, splits, world, experiment)
        try:
            metrics |= _along_the_way(state, evaluator)
        except DivergedError as error:
            if not state.guard.skipped.in_a_row:
                raise
            raise DivergedError(f"{state.guard.error()}; then {error}") from error
        _check_finite(metrics, f"in epoch {state.epoch}")
        metrics |= {
            "time/epoch_s": time.perf_counter() - started,
            "time/evaluation_s": time.perf_counter() - trained,
            "time/images_per_s": (state.loader.steps_per_epoch - first_step) * rows / (trained - started),
        }
        reporter.epoch(state.epoch, metrics)
        if state.epoch % experiment.checkpoint.every_epochs == 0 or state.epoch == last:
            _save(state, saver)
        yield Progress(state.epoch, metrics, checkpoint=saver.newest())
    stop.finish()
    checkpoint = saver.wait()
    if state.epoch < epochs:
        yield Progress(state.epoch, {}, stopped=True, checkpoint=checkpoint)
        return
    final = _final_evaluation(state, evaluator, reporter, checkpoint, known_evaluations)
    yield Progress(state.epoch, final, finished=True, checkpoint=checkpoint)


def _epoch_metrics(state: TrainState) -> dict[str, float]:
    skipped, steps = state.guard.skipped, state.loader.steps_per_epoch
    if skipped.epoch == steps:
        raise state.guard.error()
    # one transfer for all numbers
    losses = torch.tensor(state.guard.losses, dtype=torch.float64, device=state.world.device)
    numbers: list[float] = state.world.sum(torch.cat([torch.stack([*state.sums.values()]), losses])).tolist()
    totals, of_steps = numbers[: len(state.sums)], numbers[len(state.sums) :]
    metrics = {name: total / (steps - skipped.epoch) for name, total in zip(state.sums, totals, strict=True)}
    metrics["train/lr"] = learning_rate(
        state.experiment.optim,
        state.steps_done - 1,
        steps_per_epoch=state.loader.steps_per_epoch,
        epochs=state.experiment.train.epochs,
    )
    _check_finite(metrics, f"in epoch {state.epoch + 1}")
    counts = zip(RARE, (skipped.epoch, count_spikes(of_steps, steps)), strict=True)
    return metrics | {name: float(count) for name, count in counts if count}


def _save(state: TrainState, saver: Saver) -> None:
    """All workers must come; what they do not hold alike is not saved."""
    snapshot = state.snapshot()
    tensors = {**snapshot.model, **{f"optimizer {name}": value for name, value in snapshot.optimizer.items()}}
    check_alike(tensors, state.world, f"after {state.epoch} epochs and {state.step} steps")
    saver.save(snapshot)


def _check_finite(metrics: dict[str, float], when: str) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise DivergedError(f"{name} is {value} {when}: lower optim.lr or raise the temperature")


def _newest(store: CheckpointStore, world: World) -> Checkpoint | None:
    """The newest valid checkpoint; rank 0 chooses, so that no rank falls back to another one."""
    if world.size == 1:
        return store.newest()
    chosen = store.newest() if world.rank == 0 else None
    path = [chosen.path if chosen else None]
    torch.distributed.broadcast_object_list(path)
    if world.rank > 0 and path[0] is not None:
        return store.load(path[0])
    return chosen


def _along_the_way(state: TrainState, evaluator: Evaluator) -> dict[str, float]:
    """Protocols that are due, on the selection split."""
    metrics: dict[str, float] = {}
    for evaluation in state.experiment.evaluate:
        last = state.epoch == state.experiment.train.epochs
        if last or (evaluation.every_epochs and state.epoch % evaluation.every_epochs == 0):
            metrics |= evaluator.along(evaluation)
    return metrics


def _final_evaluation(
    state: TrainState,
    evaluator: Evaluator,
    reporter: Reporter,
    checkpoint: Checkpoint | None,
    known: frozenset[str],
) -> dict[str, float]:
    """All protocols that the final checkpoint lacks, on the test split and on the selection split (it may be a new protocol)."""
    final: dict[str, float] = {}
    for evaluation in state.experiment.evaluate:
        identity = evaluation_id(evaluation, checkpoint.sha256 if checkpoint else "")
        # rank 0 decides for all: the others did not write the checkpoint and may not know its checksum
        if not state.world.any(state.world.rank == 0 and identity not in known):
            continue
        measured = evaluator.final(evaluation)
        _check_finite(measured.metrics, "at the end")
        reporter.evaluated(identity, measured.metrics, measured.artefact)
        final |= {name: value for name, value in measured.metrics.items() if name.startswith("test/")}
    return final
