"""The training loop: epochs of steps, evaluation along the way, exact resume. Plain PyTorch."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from simlap import rng
from simlap.config import Experiment, evaluation_id
from simlap.data.loader import TrainLoader
from simlap.data.splits import Splits
from simlap.methods import build_method
from simlap.train.checkpoint import Checkpoint, CheckpointStore, optimizer_state_dict, optimizer_tensors
from simlap.train.distributed import convert_sync_batchnorm
from simlap.train.evaluate import DivergedError, Evaluator
from simlap.train.optim import build_optimizer, learning_rate
from simlap.train.world import World

_NO_BUFFER_SYNC: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    else {"broadcast_buffers": False}  # its name before torch 2.15
)
"""Synchronised batch norm keeps the running statistics equal; DDP need not send them."""


class Reporter(Protocol):
    """Where the numbers go. Called on every worker; only rank 0 has anything to write."""

    def start(self, epoch: int, step: int) -> None:
        """Training (re)starts after so many finished epochs and steps."""

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """An epoch is finished. Called before the checkpoint that covers it."""

    def evaluated(self, evaluation_id: str, metrics: dict[str, float]) -> None:
        """A protocol has been run on the final checkpoint."""


@dataclass
class Progress:
    """What `fit` yields after each epoch, and once more at the end."""

    epoch: int
    metrics: dict[str, float]
    finished: bool = False
    stopped: bool = False
    checkpoint: Checkpoint | None = None


@dataclass
class TrainState:
    """The model with everything that changes with it, and the counters that say where it stands."""

    experiment: Experiment
    world: World
    model: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    loader: TrainLoader
    epoch: int = 0
    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    """This worker's float64 sums over the finished steps of the epoch under way."""

    def snapshot(self) -> Checkpoint:
        """The state as a checkpoint; all workers must ask together."""
        mine = {name: value.item() for name, value in self.sums.items()}
        sums: list[dict[str, float]] = [mine] * self.world.size
        if self.world.size > 1:
            torch.distributed.all_gather_object(sums, mine)
        tensors, rest = optimizer_tensors(self.optimizer.state_dict())
        state: dict[str, Any] = {"sums": sums, "experiment": self.experiment.model_dump(mode="json"), **rest}
        return Checkpoint(self.epoch, self.step, self.model.state_dict(), tensors, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        self.model.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(optimizer_state_dict(checkpoint.optimizer, checkpoint.state))
        self.epoch, self.step = checkpoint.epoch, checkpoint.step
        per_worker: list[dict[str, float]] = checkpoint.state["sums"]
        if len(per_worker) == self.world.size:
            mine = per_worker[self.world.rank]
        else:  # written by another number of workers: only their sum counts
            first = self.world.rank == 0
            mine = {name: sum(sums[name] for sums in per_worker) if first else 0.0 for name in per_worker[0]}
        self.sums = {
            name: torch.tensor(value, dtype=torch.float64, device=self.world.device) for name, value in mine.items()
        }


def build(experiment: Experiment, splits: Splits, world: World) -> TrainState:
    """The one place that maps an experiment to objects."""
    model = build_method(experiment, num_classes=splits.num_classes, channels=splits.channels, world=world)
    model.to(world.device)
    wrapped: nn.Module = model
    if world.size > 1:
        convert_sync_batchnorm(model)  # in place: the module itself is no batch norm
        wrapped = DistributedDataParallel(model, **_NO_BUFFER_SYNC)
    loader = TrainLoader(
        splits.train,
        data=experiment.data,
        mean=splits.mean,
        std=splits.std,
        num_classes=splits.num_classes,
        batch_size=experiment.train.batch_size,
        pairs=experiment.method.pairs,
        seed=experiment.seed,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
    )
    return TrainState(experiment, world, model, wrapped, build_optimizer(model, experiment.optim), loader)


def fit(
    experiment: Experiment,
    splits: Splits,
    *,
    world: World,
    store: CheckpointStore,
    reporter: Reporter,
    stop: Callable[[], bool] = lambda: False,
    known_evaluations: frozenset[str] = frozenset(),
) -> Iterator[Progress]:
    """Train from the newest checkpoint to the last epoch, then evaluate on the test split.

    Yields after every epoch (its row reported, its checkpoint durable) and at the end. `stop` is asked between steps; a
    stopped run saves its state, where the experiment says so, and yields `stopped`.

    Raises:
        DivergedError: the loss became NaN or infinite.
    """
    state = build(experiment, splits, world)
    checkpoint = _newest(store, world)
    if checkpoint is not None:
        state.restore(checkpoint)
    reporter.start(state.epoch, state.step)
    epochs = experiment.train.epochs
    evaluate = Evaluator(state.model, splits, world)  # type: ignore[arg-type]
    while state.epoch < epochs:
        started, first_step = time.perf_counter(), state.step
        if not train_epoch(state, stop):
            if experiment.checkpoint.on_stop:
                checkpoint = _save(state, store)
            yield Progress(state.epoch, {}, stopped=True, checkpoint=checkpoint)
            return
        metrics = _epoch_metrics(state)
        state.epoch, state.step, state.sums = state.epoch + 1, 0, {}
        trained = time.perf_counter()
        images = (state.loader.steps_per_epoch - first_step) * experiment.train.batch_size
        evaluate = Evaluator(state.model, splits, world)  # type: ignore[arg-type]
        metrics |= _along_the_way(state, splits, evaluate)
        _check_finite(metrics, f"in epoch {state.epoch}")
        metrics |= {
            "time/epoch_s": time.perf_counter() - started,
            "time/evaluation_s": time.perf_counter() - trained,
            "time/images_per_s": images / (trained - started),
        }
        reporter.epoch(state.epoch, metrics)
        due = state.epoch % experiment.checkpoint.every_epochs == 0 or state.epoch == epochs
        if due:
            checkpoint = _save(state, store)
        yield Progress(state.epoch, metrics, checkpoint=checkpoint)
    final = _final_evaluation(state, splits, evaluate, reporter, checkpoint, known_evaluations)
    yield Progress(state.epoch, final, finished=True, checkpoint=checkpoint)


def train_epoch(state: TrainState, stop: Callable[[], bool] = lambda: False) -> bool:
    """Train from `state.step` to the end of the epoch. False where `stop` said so before the end."""
    experiment, world, loader = state.experiment, state.world, state.loader
    device = world.device
    wrapped, optimizer = state.wrapped.train(), state.optimizer
    bf16 = experiment.precision == "bf16"
    for batch in loader.batches(state.epoch, start_step=state.step):
        if world.any(stop()):
            return False
        # dropout and the like draw from the global generator: keyed too, so that a resumed step draws what it drew before
        torch.manual_seed(rng.key(experiment.seed, "step", state.epoch, state.step, world.rank))
        noise = _gate_noise(state, batch.rows)
        lr = learning_rate(
            experiment.optim,
            state.epoch * loader.steps_per_epoch + state.step,
            steps_per_epoch=loader.steps_per_epoch,
            epochs=experiment.train.epochs,
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, metrics = wrapped(batch.images, batch.labels, batch.pair_labels, noise, batch.global_size)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        for name, value in metrics.items():
            state.sums[name] = state.sums[name] + value if name in state.sums else value.double()
        state.step += 1
    return True


def _gate_noise(state: TrainState, rows: Tensor) -> Tensor | None:
    generator = rng.generator(state.experiment.seed, "gate", state.epoch, state.step)
    noise: Tensor | None = state.model.filter.draw_noise(state.experiment.train.batch_size, generator)  # type: ignore[operator, union-attr]
    return None if noise is None else noise[rows.cpu()].to(state.world.device)


def _save(state: TrainState, store: CheckpointStore) -> Checkpoint:
    snapshot = state.snapshot()
    return store.save(snapshot) if state.world.rank == 0 else snapshot


def _epoch_metrics(state: TrainState) -> dict[str, float]:
    # one transfer for all metrics
    totals = state.world.sum(torch.stack(list(state.sums.values()))).tolist()
    metrics = {name: total / state.loader.steps_per_epoch for name, total in zip(state.sums, totals, strict=True)}
    metrics["train/lr"] = state.optimizer.param_groups[0]["lr"]
    _check_finite(metrics, f"in epoch {state.epoch + 1}")
    return metrics


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


def _selection_split(splits: Splits) -> str:
    """On which decisions are made: the test split only where the file declares no validation."""
    return "val" if splits.val is not None else "test"


def _along_the_way(state: TrainState, splits: Splits, evaluate: Evaluator) -> dict[str, float]:
    """Protocols that are due, on the selection split."""
    metrics: dict[str, float] = {}
    for evaluation in state.experiment.evaluate:
        last = state.epoch == state.experiment.train.epochs
        if last or (evaluation.every_epochs and state.epoch % evaluation.every_epochs == 0):
            metrics |= evaluate(evaluation, _selection_split(splits))
    return metrics


def _final_evaluation(
    state: TrainState,
    splits: Splits,
    evaluate: Evaluator,
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
        # `collapse/*` is the curve on the selection split; the test set's value has a name of its own
        test = {name.replace("collapse/", "test/collapse_"): v for name, v in evaluate(evaluation, "test").items()}
        metrics = {**evaluate(evaluation, _selection_split(splits)), **test}
        _check_finite(metrics, "at the end")
        reporter.evaluated(identity, metrics)
        final |= test
    return final
