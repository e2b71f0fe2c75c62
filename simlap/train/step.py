"""The training state, how it is built, and the one step that changes it. Plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from simlap import rng
from simlap.config import Experiment
from simlap.data.augment.device import move
from simlap.data.batch import Batch
from simlap.data.loader import TrainLoader
from simlap.data.splits import Splits
from simlap.errors import ConfigError
from simlap.methods import build_method, pair_kind
from simlap.methods.base import Method, StepOutput
from simlap.train.accumulate import average_gradients, backward_in_parts
from simlap.train.checkpoint import Checkpoint, optimizer_state_dict, optimizer_tensors
from simlap.train.distributed import convert_sync_batchnorm, data_parallel, start_alike
from simlap.train.finite import Guard, Skipped, backward
from simlap.train.optim import build_optimizer, learning_rate, place_like_parameters, set_learning_rate
from simlap.train.padding import skip_padding
from simlap.train.seeding import seed
from simlap.train.weights import EMA_PREFIX, load_backbone, read_backbone
from simlap.train.world import World

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3


@dataclass
class TrainState:
    """The model with everything that changes with it, and the counters that say where it stands."""

    experiment: Experiment
    world: World
    model: Method
    wrapped: nn.Module
    """The model, or the data-parallel wrapper around it. Without one (see `data_parallel`; and with more than one `part`)
    gradients are averaged once, after the backward pass."""
    optimizer: torch.optim.Optimizer
    loader: TrainLoader
    input: dict[str, Any]
    """What the backbone is made for, as the splits have it, kept in checkpoints: `channels`, `image_size`, `eval_size`,
    `interpolation`, `mean`, `std` and `num_classes`."""
    ema: ModelEmaV3 | None = None
    epoch: int = 0
    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    """This worker's float64 sums over the finished steps of the epoch under way, as `train_epoch` has left them."""
    guard: Guard = field(init=False)
    """Leaves out steps that are not finite. Their part in the sums is 0."""

    def __post_init__(self) -> None:
        self.guard = Guard(self.model, self.optimizer, self.world, self.experiment.train.max_skipped_steps)

    @property
    def parts(self) -> int:
        """How many parts of a worker's rows go through the backbone one by one."""
        return _parts(self.experiment, self.world)

    @property
    def evaluated(self) -> Method:
        """The model that is evaluated and exported: the moving average, where there is one."""
        if self.ema is None:
            return self.model
        averaged: Method = self.ema.module
        return averaged

    def snapshot(self) -> Checkpoint:
        """The state as a checkpoint; all workers must ask together."""
        mine = ({name: value.item() for name, value in self.sums.items()}, [*self.guard.losses])
        per_worker: list[tuple[dict[str, float], list[float]]] = [mine] * self.world.size
        if self.world.size > 1:
            torch.distributed.all_gather_object(per_worker, mine)
        sums, losses = [each for each, _ in per_worker], [each for _, each in per_worker]
        tensors, rest = optimizer_tensors(self.optimizer.state_dict())
        state: dict[str, Any] = {"sums": sums, "losses": losses, "skipped": asdict(self.guard.skipped)}
        state |= {"experiment": self.experiment.model_dump(mode="json"), "input": self.input, **rest}
        model = self.model.state_dict()
        if self.ema is not None:
            model |= {f"{EMA_PREFIX}{name}": value for name, value in self.ema.module.state_dict().items()}
        return Checkpoint(self.epoch, self.step, model, tensors, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        model = {name: value for name, value in checkpoint.model.items() if not name.startswith(EMA_PREFIX)}
        self.model.load_state_dict(model)
        if self.ema is not None:
            averaged = {
                name.removeprefix(EMA_PREFIX): value
                for name, value in checkpoint.model.items()
                if name.startswith(EMA_PREFIX)
            }
            self.ema.module.load_state_dict(averaged)
        self.optimizer.load_state_dict(optimizer_state_dict(checkpoint.optimizer, checkpoint.state))
        place_like_parameters(self.optimizer)
        self.epoch, self.step = checkpoint.epoch, checkpoint.step
        per_worker: list[dict[str, float]] = checkpoint.state["sums"]
        losses: list[list[float]] = checkpoint.state.get("losses", [[] for _ in per_worker])  # older ones have none
        if len(per_worker) == self.world.size:
            mine, own = per_worker[self.world.rank], losses[self.world.rank]
        else:  # written by another number of workers: only their sum counts
            first = self.world.rank == 0
            mine = {name: sum(sums[name] for sums in per_worker) if first else 0.0 for name in per_worker[0]}
            own = [sum(shares) if first else 0.0 for shares in zip(*losses, strict=True)]
        self.sums = {
            name: torch.tensor(value, dtype=torch.float64, device=self.world.device) for name, value in mine.items()
        }
        self.guard.losses, self.guard.skipped = [*own], Skipped(**checkpoint.state.get("skipped", {}))

    def next_epoch(self) -> None:
        """The one under way is over: begin to count anew."""
        self.epoch, self.step, self.sums = self.epoch + 1, 0, {}
        self.guard.next_epoch()

    @property
    def steps_done(self) -> int:
        """Finished steps of the whole run."""
        return self.epoch * self.loader.steps_per_epoch + self.step


def build(
    experiment: Experiment,
    splits: Splits,
    world: World,
    start: Mapping[str, Tensor] | None = None,
    checkpoint: Checkpoint | None = None,
) -> TrainState:
    """The one place that maps an experiment to objects.

    Args:
        experiment: what to build.
        splits: its data.
        world: the data-parallel world.
        start: what the backbone starts from, by names inside it: what its `pretrain` stage has learnt. Without it the
            backbone starts from `backbone.weights`, where that is given.
        checkpoint: to go on from; nothing is read or started from then.

    Raises:
        ConfigError: weights that do not fit, naming `pretrain` or `backbone.weights`; a wrong optimiser.
    """
    model = build_method(experiment, num_classes=splits.num_classes, channels=splits.channels, world=world)
    if checkpoint is None:
        _start(model, experiment, start)
    model.to(world.device)
    if experiment.train.channels_last:
        model.backbone.to(memory_format=torch.channels_last)
    if world.device.type == "cpu":
        skip_padding(model.backbone)
    if world.size > 1:
        convert_sync_batchnorm(model)  # in place: the module itself is no batch norm
    ema = None
    if experiment.train.ema_decay is not None:
        from timm.utils.model_ema import ModelEmaV3  # takes seconds

        ema = ModelEmaV3(model, decay=experiment.train.ema_decay)
    if experiment.train.compile:
        model.backbone.compile()  # in place: names of parameters stay
    wrapped: nn.Module = model
    if world.size > 1:
        if _parts(experiment, world) == 1:
            wrapped = data_parallel(model)
        else:
            start_alike(model)
    loader = TrainLoader(
        splits.train,
        data=experiment.data,
        mean=splits.mean,
        std=splits.std,
        num_classes=splits.num_classes,
        batch_size=experiment.train.batch_size,
        pairs=pair_kind(experiment),
        seed=experiment.seed,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
    )
    made_for = {
        "channels": splits.channels,
        "image_size": splits.image_size,
        "eval_size": splits.eval_size,
        "interpolation": splits.interpolation,
        "mean": [float(value) for value in splits.mean],
        "std": [float(value) for value in splits.std],
        "num_classes": splits.num_classes,
    }
    optimizer = build_optimizer(model, experiment.optim)
    state = TrainState(experiment, world, model, wrapped, optimizer, loader, made_for, ema)
    if checkpoint is not None:
        state.restore(checkpoint)
    return state


def _parts(experiment: Experiment, world: World) -> int:
    """The same on all workers: rank 0 has most rows."""
    micro = experiment.train.micro_batch_size
    most = world.rows(experiment.train.batch_size, 0) * experiment.data.augment.views
    return 1 if micro is None else -(-most // micro)


def _start(model: Method, experiment: Experiment, start: Mapping[str, Tensor] | None) -> None:
    weights = experiment.backbone.weights
    if start is not None:
        source = experiment.pretrain.name if experiment.pretrain else ""
        load_backbone(model.backbone, start, key="pretrain", source=source)
    elif experiment.pretrain is not None:
        raise ConfigError(
            f"the backbone starts from what {experiment.pretrain.name!r} has learnt, which is not here; run that stage first",
            key="pretrain",
        )
    elif weights is not None:
        load_backbone(model.backbone, read_backbone(weights, experiment.backbone.key_prefix), source=weights)


def train_epoch(state: TrainState, stop: Callable[[], bool] = lambda: False) -> bool:
    """Train from `state.step` to the end of the epoch. False where `stop` said so before the end.

    `stop` is asked before every step and must give all workers the same answer: see `simlap.train.stopping`. Raises
    DivergedError where too many steps in a row were left out.
    """
    experiment, loader = state.experiment, state.loader
    state.wrapped.train()
    names, total = [*state.sums], torch.stack([*state.sums.values()]) if state.sums else None
    stopped = False
    for batch in loader.batches(state.epoch, start_step=state.step):
        if stop():
            stopped = True
            break
        rate = learning_rate(
            experiment.optim,
            state.steps_done,
            steps_per_epoch=loader.steps_per_epoch,
            epochs=experiment.train.epochs,
        )
        set_learning_rate(state.optimizer, rate)
        metrics = train_step(state, batch).metrics
        state.step += 1
        # one addition for all of them, and none is waited for
        if (values := state.guard.counted(torch.stack([*metrics.values()]))) is None:
            continue
        total = values.double() if total is None else total.add_(values)
        names = [*metrics]
        if state.ema is not None:
            # the first update copies: the average begins with weights that have seen data
            state.ema.update(state.model, step=state.steps_done - state.guard.skipped.run)
    state.guard.settle()
    if total is not None:
        state.sums = dict(zip(names, total.unbind(), strict=True))
    return not stopped


def train_step(state: TrainState, batch: Batch) -> StepOutput:
    """One step of the optimiser, at the learning rate that its groups have. Draws are keyed by `state.epoch` and `state.step`.
    Nothing is changed where its gradient is not finite: see `simlap.train.finite`."""
    experiment, guard = state.experiment, state.guard
    guard.remember()
    output = gradients(state, batch)
    if not guard.judge(batch.images, output.loss, state.epoch, state.step):
        return output
    if experiment.optim.clip_grad is not None:
        # averaged over workers already, so every worker finds the same norm
        nn.utils.clip_grad_norm_(guard.parameters, experiment.optim.clip_grad)
    # some optimisers draw: the same on every worker
    seed(rng.key(experiment.seed, "optimizer", state.epoch, state.step), state.world.device)
    guard.update()
    return output


def gradients(state: TrainState, batch: Batch) -> StepOutput:
    """Loss and metrics of a batch; the gradients of the global batch are left in the parameters, equal on all workers."""
    experiment, world, train = state.experiment, state.world, state.experiment.train
    if train.channels_last:
        batch = batch.with_images(batch.images.contiguous(memory_format=torch.channels_last))
    # dropout and the like draw from the global generator: keyed too, so that a resumed step draws what it drew before
    key = rng.key(experiment.seed, "step", state.epoch, state.step, world.rank)
    seed(key, world.device)
    noise = _noise(state, batch)
    state.optimizer.zero_grad(set_to_none=True)
    autocast = torch.autocast(world.device.type, torch.bfloat16, enabled=experiment.precision == "bf16")
    if state.parts == 1:
        with autocast:
            output: StepOutput = state.wrapped(batch, noise)
        backward(output.loss)
    else:
        output = backward_in_parts(state.model, batch, noise, parts=state.parts, key=key, autocast=autocast)
    if state.wrapped is state.model:
        average_gradients(state.guard.parameters, world)
    return output


def _noise(state: TrainState, batch: Batch) -> Tensor | None:
    """This worker's rows of the gate noise, which is drawn for the global batch."""
    generator = rng.generator(state.experiment.seed, "gate", state.epoch, state.step)
    noise = state.model.draw_noise(batch.global_size, generator)
    # whole to the device: to bring the row numbers here would wait for all work queued before them
    return None if noise is None else move(noise, state.world.device)[batch.rows]
