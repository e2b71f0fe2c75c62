"""The schedule against timm's, and which parameters decay."""

from __future__ import annotations

import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from simlap.config.schema import Optim
from simlap.train.optim import build_optimizer, learning_rate


@pytest.mark.parametrize("warmup", [0.0, 2.0])
def test_schedule_is_timms_without_prefix(warmup: float) -> None:
    config = Optim(lr=0.1, warmup_epochs=warmup, warmup_lr=1e-6, min_lr=1e-5)
    steps, epochs = 7, 9
    timm = CosineLRScheduler(
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr),
        t_initial=steps * epochs,
        lr_min=config.min_lr,
        warmup_t=int(warmup * steps),
        warmup_lr_init=config.warmup_lr,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    for step in range(steps * epochs):
        timm.step_update(step)
        expected = timm.optimizer.param_groups[0]["lr"]
        assert learning_rate(config, step, steps_per_epoch=steps, epochs=epochs) == pytest.approx(expected, rel=1e-9)


def test_constant_after_warmup() -> None:
    config = Optim(lr=0.1, schedule="constant", warmup_epochs=1.0, warmup_lr=0.0)
    rates = [learning_rate(config, step, steps_per_epoch=4, epochs=3) for step in range(12)]
    assert rates == pytest.approx([0.0, 0.025, 0.05, 0.075] + [0.1] * 8)


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_no_decay_on_vectors_and_decay_on_embeddings(name: str, kind: type) -> None:
    model = nn.ModuleDict({"linear": nn.Linear(3, 2), "norm": nn.BatchNorm1d(3), "labels": nn.Embedding(4, 3)})
    optimizer = build_optimizer(model, Optim.model_validate({"name": name, "weight_decay": 0.25}))
    assert type(optimizer) is kind
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.25 if parameter.ndim > 1 else 0.0)
