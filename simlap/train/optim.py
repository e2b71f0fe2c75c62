"""Optimiser and schedule from the config."""

from __future__ import annotations

import math

import torch
from torch import nn

from simlap.config.schema import Optim


def build_optimizer(model: nn.Module, config: Optim) -> torch.optim.Optimizer:
    """No decay on biases and 1-d parameters; decay on matrices and label embeddings (the authors' recipe)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    match config.name:
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr)
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr)
        case "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def learning_rate(config: Optim, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """Learning rate of a step (from 0): linear warm-up, then a cosine not shifted by it (timm without prefix)."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.warmup_lr + step * (config.lr - config.warmup_lr) / warmup
    if config.schedule == "constant":
        return config.lr
    phase = math.pi * step / (epochs * steps_per_epoch)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(phase))
