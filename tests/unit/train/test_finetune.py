from __future__ import annotations

from typing import Any

import pytest
import torch

from simlap.config.schema import FineTune, Supervised
from simlap.data.splits import load_splits
from simlap.methods import build_method
from simlap.train.evaluate import Evaluator
from simlap.train.features import DivergedError
from simlap.train.finetune import finetune, finetune_experiment
from simlap.train.world import World
from tests.tiny import tiny


def protocol(**changes: Any) -> FineTune:
    return FineTune(kind="finetune", **{"epochs": 2, "batch_size": 64, "lr": 0.05, **changes})


def test_the_experiment_of_a_protocol() -> None:
    experiment = tiny(
        method={"kind": "simclr"},
        data__augment__views=2,
        data__sampling={"kind": "pk", "classes": 8, "images": 16},
        backbone__frozen_norm=True,
        backbone__weights="x.safetensors",
    )
    made = finetune_experiment(
        experiment, protocol(seed=3, label_smoothing=0.2, layer_decay=0.5, weight_decay=1e-3), 1000
    )
    assert isinstance(made.method, Supervised)
    assert made.method.label_smoothing == 0.2
    assert (made.seed, made.optim.name, made.optim.lr, made.optim.layer_decay, made.optim.weight_decay) == (
        3, "sgd", 0.05, 0.5, 1e-3,
    )  # fmt: skip
    assert (made.train.epochs, made.train.batch_size, made.optim.warmup_epochs) == (2, 64, 1.0)
    assert (made.data.augment.views, made.data.sampling.kind) == (1, "uniform")
    assert made.data.augment.erase == experiment.data.augment.erase
    assert (made.backbone.weights, made.backbone.frozen_norm) == (None, False)
    assert made.backbone.kwargs == experiment.backbone.kwargs


def test_a_batch_is_never_larger_than_the_training_part() -> None:
    assert finetune_experiment(tiny(), protocol(), 40).train.batch_size == 40


@pytest.mark.parametrize("lr", [1e-7, 1e-5, 1.0])
def test_every_learning_rate_makes_a_schedule(lr: float) -> None:
    optim = finetune_experiment(tiny(), protocol(lr=lr, epochs=1), 100).optim
    assert optim.min_lr < optim.lr
    assert optim.warmup_lr <= optim.lr
    assert optim.warmup_epochs == 0.5


def test_it_starts_from_the_backbone_and_learns() -> None:
    experiment = tiny(data__fraction=0.25)
    splits, world = load_splits(experiment.data), World()
    model = build_method(experiment, num_classes=10, channels=1, world=world)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.mul_(1.25)  # not what a new backbone is initialised to
    start = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    still = finetune(model, splits, world, experiment, protocol(lr=1e-12, epochs=1, weight_decay=0.0))
    for name, value in still.backbone.named_parameters():
        torch.testing.assert_close(value, start[name], msg=name)
    short = protocol(epochs=3, lr=0.1, layer_decay=1.0, batch_size=16)
    tuned = finetune(model, splits, world, experiment, short)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, start[name]), name
    chance = Evaluator(still, splits, world, experiment)._probe("val")["val/probe_top1"]
    assert Evaluator(tuned, splits, world, experiment)._probe("val")["val/probe_top1"] > chance + 0.2


def test_it_is_keyed() -> None:
    experiment = tiny(data__fraction=0.1)
    splits, world = load_splits(experiment.data), World()
    model = build_method(experiment, num_classes=10, channels=1, world=world)
    one, same, other = (finetune(model, splits, world, experiment, protocol(epochs=1, seed=seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_divergence_is_said() -> None:
    experiment = tiny(data__fraction=0.2)
    splits, world = load_splits(experiment.data), World()
    model = build_method(experiment, num_classes=10, channels=1, world=world)
    with pytest.raises(DivergedError, match="loss of the fine-tuning is not finite"):
        finetune(model, splits, world, experiment, protocol(lr=1e18))
