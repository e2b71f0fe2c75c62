"""The training state: what it starts from, its moving average, precision and memory order, and resume of all of it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from simlap import rng
from simlap.config import Experiment
from simlap.data.splits import Splits, load_splits
from simlap.errors import ConfigError
from simlap.nn.backbone import Conv3
from simlap.storage import Storage
from simlap.train.checkpoint import Checkpoint, CheckpointStore
from simlap.train.loop import Progress, fit
from simlap.train.optim import layer_scales
from simlap.train.step import TrainState, _noise, build, gradients, train_epoch
from simlap.train.weights import backbone_of
from simlap.train.world import World
from tests.tiny import tiny

QUICK: dict[str, Any] = {
    "data__fraction": 0.2,
    "train__batch_size": 50,
    "train__epochs": 2,
    "evaluate": [{"kind": "probe"}],
}
"""5 steps an epoch."""


def experiment(**changes: Any) -> Experiment:
    return tiny(**{**QUICK, **changes})


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_splits(experiment().data)


def state(splits: Splits, **changes: Any) -> TrainState:
    return build(experiment(**changes), splits, World())


def tensors(made: TrainState) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in made.model.state_dict().items()}


# --- starting weights ------------------------------------------------------------------------------------------------


def other_backbone(widths: tuple[int, ...] = (4, 8)) -> dict[str, Tensor]:
    torch.manual_seed(99)
    return Conv3(1, widths).state_dict()


def test_weights_from_a_file(splits: Splits, tmp_path: Path) -> None:
    path = str(tmp_path / "a.safetensors")
    save_file({f"net.{name}": value for name, value in other_backbone().items()}, path)
    made = state(splits, backbone__weights=path, backbone__key_prefix="net.")
    for name, value in other_backbone().items():
        assert torch.equal(made.model.backbone.state_dict()[name], value)
    plain = state(splits)
    assert torch.equal(made.model.state_dict()["probe.weight"], plain.model.state_dict()["probe.weight"]), (
        "heads are drawn"
    )


def test_weights_of_the_stage_before(splits: Splits) -> None:
    made = build(experiment(), splits, World(), other_backbone())
    assert torch.equal(made.model.backbone.state_dict()["0.weight"], other_backbone()["0.weight"])


def test_weights_that_do_not_fit(splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        build(experiment(), splits, World(), other_backbone((4, 9)))
    assert raised.value.key == "pretrain"
    path = str(tmp_path / "a.safetensors")
    save_file(other_backbone((4, 9)), path)
    with pytest.raises(ConfigError, match=r"3\.weight") as raised:
        state(splits, backbone__weights=path)
    assert raised.value.key == "backbone.weights"
    assert path in str(raised.value)


def test_a_later_stage_does_not_start_from_scratch(splits: Splits) -> None:
    later = experiment(pretrain=experiment().model_dump(mode="json"))
    with pytest.raises(ConfigError, match="run that stage first") as raised:
        build(later, splits, World())
    assert raised.value.key == "pretrain"
    made = build(later, splits, World(), other_backbone())
    resumed = build(later, splits, World(), None, made.snapshot())
    assert torch.equal(resumed.model.backbone.state_dict()["0.weight"], other_backbone()["0.weight"])


# --- the step --------------------------------------------------------------------------------------------------------


def test_layers_learn_at_their_share(splits: Splits) -> None:
    """Of plain gradient descent, every tensor's step is its share of what it would be."""
    settings = {"optim__name": "sgd", "optim__momentum": 0.0, "optim__weight_decay": 0.0, "optim__warmup_epochs": 0}
    plain, layered = state(splits, **settings), state(splits, **settings, optim__layer_decay=0.5)
    before = tensors(plain)
    for made in (plain, layered):
        train_epoch(made, stop_at(1))
    scales = layer_scales(plain.model, 0.5)
    assert len(set(scales.values())) == 3
    for name, parameter in plain.model.named_parameters():
        step = layered.model.get_parameter(name) - before[name]
        assert torch.allclose(step, scales[name] * (parameter - before[name]), rtol=1e-3, atol=1e-6), name


def test_the_gradient_is_clipped_as_a_whole(splits: Splits) -> None:
    settings = {"optim__name": "sgd", "optim__momentum": 0.0, "optim__weight_decay": 0.0, "optim__warmup_epochs": 0}
    made = state(splits, **settings, optim__clip_grad=0.03)
    before = tensors(made)
    train_epoch(made, stop_at(1))
    squares = sum(float((p.detach() - before[n]).double().square().sum()) for n, p in made.model.named_parameters())
    assert squares**0.5 == pytest.approx(0.01 * 0.03, rel=1e-3)


def test_noise_is_that_of_the_rows_and_is_not_waited_for(splits: Splits) -> None:
    made = state(splits)
    batch = next(iter(made.loader.batches(0)))
    rows = torch.tensor([41, 0, 7])
    drawn = made.model.draw_noise(batch.global_size, rng.generator(made.experiment.seed, "gate", 0, 0))
    found = _noise(made, dataclasses.replace(batch, rows=rows))
    assert drawn is not None
    assert found is not None
    assert torch.equal(found, drawn[rows])
    # tensors without values: bringing them to the CPU is an error
    made.world = dataclasses.replace(made.world, device=torch.device("meta"))
    there = _noise(made, dataclasses.replace(batch, rows=rows.to("meta")))
    assert there is not None
    assert there.shape == found.shape


def test_channels_last_changes_the_order_in_memory_only(splits: Splits) -> None:
    # not Adam: where a gradient is 0 but for rounding it takes steps of any direction
    settings = {"optim__name": "sgd"}
    made, plain = state(splits, train__channels_last=True, **settings), state(splits, **settings)
    weight = made.model.get_parameter("backbone.3.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    for each in (made, plain):
        assert train_epoch(each)
    for name, value in plain.model.state_dict().items():
        assert torch.allclose(made.model.state_dict()[name], value, rtol=1e-3, atol=1e-3), name
    again = build(made.experiment, splits, World(), None, saved(made))
    for name, parameter in made.model.named_parameters():
        other = again.model.get_parameter(name)
        assert other.stride() == parameter.stride()
        for key, value in made.optimizer.state[parameter].items():
            order = {"memory_format": torch.channels_last} if value.ndim == 4 else {}
            assert again.optimizer.state[other][key].is_contiguous(**order)


@pytest.mark.slow
def test_compiling_changes_the_speed_only(splits: Splits) -> None:
    made, plain = state(splits, train__compile=True), state(splits)
    assert made.model.state_dict().keys() == plain.model.state_dict().keys()
    batch = next(iter(plain.loader.batches(0)))
    for each in (made, plain):
        each.wrapped.train()
        gradients(each, batch)
    assert made.model.backbone._compiled_call_impl is not None
    for (name, mine), wanted in zip(made.model.named_parameters(), plain.model.parameters(), strict=True):
        assert mine.grad is not None
        assert wanted.grad is not None
        assert torch.allclose(mine.grad, wanted.grad, rtol=1e-3, atol=1e-4), name
    again = build(made.experiment, splits, World(), None, saved(made))
    assert all(torch.equal(tensors(again)[name], value) for name, value in tensors(made).items())


# --- moving average --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["simlap", "fuse"])
def test_moving_average_step_by_step(splits: Splits, kind: str) -> None:
    method = {"kind": kind, "embed_dim": 8, "projector_hidden_dim": 8}
    made = state(splits, train__ema_decay=0.75, method=method)
    assert made.evaluated is not made.model
    seen: list[dict[str, Tensor]] = []

    def look() -> bool:
        seen.append(tensors(made))
        return False

    assert train_epoch(made, look)
    steps = [*seen[1:], tensors(made)]
    expected = {name: value.double() for name, value in steps[0].items()}
    for step in steps[1:]:
        for name, value in step.items():
            expected[name] = 0.75 * expected[name] + 0.25 * value if value.is_floating_point() else value.double()
    for name, value in made.evaluated.state_dict().items():
        assert torch.allclose(value.double(), expected[name], rtol=1e-4, atol=1e-6), name
    if kind == "fuse":
        labels, pairs = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3])
        assert made.evaluated.gates is not None
        rows = made.evaluated.head.sign_weights()  # type: ignore[operator, union-attr]
        gates = made.evaluated.gates(labels, pairs).gates
        assert torch.equal(gates, (rows[labels].sign() * rows[pairs].sign() > 0).to(gates)), (
            "gates of its own classifier"
        )


def test_the_moving_average_is_evaluated_and_exported(splits: Splits, tmp_path: Path) -> None:
    ran = run(experiment(train__ema_decay=0.9), splits, tmp_path)
    without = run(experiment(), splits, tmp_path / "without")
    assert ran["rows"][-1]["train/loss"] == without["rows"][-1]["train/loss"]
    assert ran["rows"][-1]["val/probe_loss"] != without["rows"][-1]["val/probe_loss"]
    model = ran["checkpoint"].model
    backbone = backbone_of(model)
    assert torch.equal(backbone["0.weight"], model["ema.backbone.0.weight"])
    assert not torch.equal(backbone["0.weight"], model["backbone.0.weight"])


# --- interrupted equals uninterrupted --------------------------------------------------------------------------------


def stop_at(step: int) -> Callable[[], bool]:
    asked: Iterator[int] = iter(range(10**6))
    return lambda: next(asked) >= step


def saved(made: TrainState) -> Checkpoint:
    """A checkpoint as it comes back from the disk."""
    snapshot = made.snapshot()
    return Checkpoint(
        snapshot.epoch,
        snapshot.step,
        {name: value.clone().contiguous() for name, value in snapshot.model.items()},
        {name: value.clone().contiguous() for name, value in snapshot.optimizer.items()},
        copy.deepcopy(snapshot.state),
    )


class Rows:
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.evaluations: dict[str, dict[str, float]] = {}

    def start(self, epoch: int, step: int) -> None: ...

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        self.rows.append({name: value for name, value in metrics.items() if not name.startswith("time/")})

    def evaluated(self, evaluation_id: str, metrics: dict[str, float], artefact: dict[str, Any] | None = None) -> None:
        self.evaluations[evaluation_id] = metrics


def run(
    experiment: Experiment,
    splits: Splits,
    folder: Path,
    stops: tuple[int, ...] = (),
    start: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Train to the end, asked to stop after so many steps each time."""
    store, rows = CheckpointStore(Storage(folder)), Rows()
    last: Progress
    for stop in (*map(stop_at, stops), lambda: False):
        *_, last = fit(experiment, splits, world=World(), store=store, reporter=rows, stop=stop, start=start)
        start = None  # only the first time
    assert last.finished
    newest = store.newest()
    assert newest is not None
    return {"rows": rows.rows, "evaluations": rows.evaluations, "checkpoint": newest}


VIT = {
    "name": "vit_tiny_patch16_224",
    "kwargs": {"patch_size": 4, "depth": 2, "embed_dim": 12, "num_heads": 2, "drop_path_rate": 0.3},
}
NEW: dict[str, dict[str, Any]] = {
    "moving average": {"train__ema_decay": 0.8},
    "accumulation with dropout": {"train__micro_batch_size": 16, "backbone": VIT},
    "accumulation with batch norm": {"train__micro_batch_size": 16},
    "pk": {"data__sampling": {"kind": "pk", "classes": 5, "images": 10}},
    "one to one": {
        "data__sampling": {"kind": "pk", "classes": 5, "images": 10},
        "method": {"kind": "supcon", "variant": "one_to_one", "embed_dim": 8},
    },
    "views": {"data__augment__views": 2, "method": {"kind": "simclr", "embed_dim": 8, "projector_hidden_dim": 8}},
    "mixup": {
        "data__augment__mixup": 0.8,
        "data__augment__cutmix": 1.0,
        "data__augment__mix_probability": 0.7,
        "method": {"kind": "supervised", "label_smoothing": 0.1, "dropout": 0.2},
        "optim__layer_decay": 0.65,
        "optim__name": "sgd",
    },
    "fuse": {"method": {"kind": "fuse", "embed_dim": 8, "projector_hidden_dim": 8}, "optim__clip_grad": 0.5},
    "muon": {"optim__name": "muon", "optim__lr": 0.01},
    "lamb": {"optim__name": "lamb"},
    "learnt temperature": {"method__learn_temperature": True},
    "bf16": {"train__precision": "bf16", "train__ema_decay": 0.8, "train__channels_last": True},
}


@pytest.mark.parametrize("name", NEW)
def test_interrupted_equals_uninterrupted(splits: Splits, tmp_path: Path, name: str) -> None:
    changed = experiment(**NEW[name])
    whole = run(changed, splits, tmp_path / "whole")
    parts = run(changed, splits, tmp_path / "parts", (2, 4))
    assert parts["rows"] == whole["rows"]
    assert parts["evaluations"] == whole["evaluations"]
    for part in ("model", "optimizer"):
        mine, wanted = getattr(parts["checkpoint"], part), getattr(whole["checkpoint"], part)
        assert mine.keys() == wanted.keys()
        for key, value in wanted.items():
            assert torch.equal(mine[key], value), key
    assert parts["checkpoint"].state["optimizer_groups"] == whole["checkpoint"].state["optimizer_groups"]


def test_a_stage_resumes_without_what_it_started_from(splits: Splits, tmp_path: Path) -> None:
    later = experiment(pretrain=experiment().model_dump(mode="json"))
    whole = run(later, splits, tmp_path / "whole", start=other_backbone())
    parts = run(later, splits, tmp_path / "parts", (3,), start=other_backbone())
    assert parts["rows"] == whole["rows"]
    assert whole["rows"] != run(experiment(), splits, tmp_path / "scratch")["rows"]
