"""Gradient accumulation for losses that look at the whole batch: features are computed twice, and kept once.

The first pass through the backbone keeps no graph, the criterion on all features gives their gradient, and the second pass
carries it into the backbone, one part of the batch at a time (Gao et al. 2021, "gradient caching").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simlap import rng
from simlap.comm import average_
from simlap.data.batch import Batch
from simlap.methods.base import Method, StepOutput
from simlap.train.finite import backward
from simlap.train.seeding import seed
from simlap.train.world import World


def backward_in_parts(
    model: Method,
    batch: Batch,
    noise: Tensor | None,
    *,
    parts: int,
    key: int,
    autocast: torch.autocast,
) -> StepOutput:
    """The loss and metrics of the batch, its gradients left in the parameters, as `loss.backward()` would leave them.

    Equal to the plain step where the backbone treats rows alone: without batch norm, or with a frozen one. Dropout draws
    the same in both passes, but not what the plain step draws. Running statistics see every part once. The gradients are
    this worker's: average them (`average_gradients`).

    Args:
        model: not wrapped; its gradients are added to.
        batch: this worker's rows.
        noise: its rows of `draw_noise`.
        parts: how many parts go through the backbone; the same on all workers, whose batch norms meet in each.
        key: of the draws.
        autocast: the step's precision.
    """
    images = batch.images.tensor_split(parts)
    before = [buffer.clone() for buffer in model.backbone.buffers()]
    features = []
    with torch.no_grad(), autocast:
        for i, part in enumerate(images):
            seed(rng.key(key, "part", i), batch.labels.device)
            features.append(model.backbone(part))
    for buffer, value in zip(model.backbone.buffers(), before, strict=True):
        buffer.copy_(value)
    h = torch.cat(features).requires_grad_()  # [b, d]
    seed(key, batch.labels.device)
    with autocast:
        output = model.criterion(h, batch, noise)
    backward(output.loss)
    assert h.grad is not None
    for i, (part, gradient) in enumerate(zip(images, h.grad.tensor_split(parts), strict=True)):
        seed(rng.key(key, "part", i), batch.labels.device)
        with autocast:
            again = model.backbone(part)
        again.backward(gradient)
    return output


def average_gradients(parameters: Sequence[Tensor], world: World) -> None:
    """Replace every gradient by its mean over the workers, as DDP does. All workers must have the same ones."""
    if world.size > 1:
        average_([parameter.grad for parameter in parameters if parameter.grad is not None])
