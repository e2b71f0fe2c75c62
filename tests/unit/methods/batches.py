"""Batches and methods of the tests in this folder, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simlap.config import Experiment
from simlap.data.batch import Batch
from simlap.methods import Method, build_method
from simlap.train.world import World

NUM_CLASSES = 5


def build(experiment: Experiment) -> Any:
    """The method of an experiment in training mode, float64. `Any`: the tests look at the parts of each kind."""
    return build_method(experiment, num_classes=NUM_CLASSES, channels=1, world=World()).double().train()


def batch(num_images: int = 12, views: int = 1, seed: int = 0, pair_labels: Tensor | None = None) -> Batch:
    """Random images of random classes with arbitrary pairs."""
    generator = torch.Generator().manual_seed(seed)
    size = num_images * views
    labels = torch.randint(NUM_CLASSES, (num_images,), generator=generator)
    if pair_labels is None:
        pair_labels = labels[torch.randperm(num_images, generator=generator)]
    return Batch(
        images=torch.randn(size, 1, 8, 8, generator=generator, dtype=torch.float64),
        labels=labels.repeat_interleave(views),
        pair_labels=pair_labels.repeat_interleave(views),
        rows=torch.arange(size),
        samples=(torch.arange(num_images) + 40).repeat_interleave(views),
        global_size=size,
        views=views,
    )


def gradients(method: Method, loss: Tensor) -> dict[str, Tensor]:
    """Of all parameters that the loss reaches."""
    method.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
