"""Features of whole datasets under a frozen backbone, in parallel over the workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from simlap.data.evaluation import eval_batches
from simlap.data.splits import ImageSet, Splits
from simlap.methods.base import Method
from simlap.train.distributed import all_gather_with_gradient
from simlap.train.world import World

_BATCH_SIZE = defaultdict(lambda: 512, cuda=2048)
"""Images to a batch by device. Larger ones gain nothing on a CPU."""


class DivergedError(RuntimeError):
    """A loss, a feature or a metric is not finite."""


@contextmanager
def evaluating(model: Method) -> Iterator[None]:
    """A block in which the model is in evaluation mode and nothing is recorded for gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _memory_order(backbone: nn.Module) -> torch.memory_format:
    """That of the images which the backbone's convolutions want."""
    last = torch.channels_last
    kernels = [parameter for parameter in backbone.parameters() if parameter.ndim == 4]
    if kernels and all(kernel.is_contiguous(memory_format=last) for kernel in kernels):
        return last
    return torch.contiguous_format


def _not_compiled(backbone: nn.Module) -> AbstractContextManager[object]:
    """A block without torch.compile: it would compile once more for evaluation mode, which takes longer than it gains."""
    if backbone._compiled_call_impl is None:
        return nullcontext()
    eager: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return eager


def extract_features(model: Method, images: ImageSet, splits: Splits, world: World) -> Tensor:
    """[n, d] float32 backbone features of all images, in their order, on every worker. All workers must call it together.

    Each extracts rows rank::size.

    Args:
        images: a part of `splits`.
        splits: its statistics and sizes are used.

    Raises:
        DivergedError: a feature is not finite.
    """
    mine = images
    if world.size > 1:
        mine = images.share(world.rank, world.size)
    # a worker without rows still takes part in the gathering
    parts = [torch.empty(0, model.num_features, device=world.device)]
    order = _memory_order(model.backbone)
    with evaluating(model), _not_compiled(model.backbone):
        for batch, _ in eval_batches(mine, splits, world.device, batch_size=_BATCH_SIZE[world.device.type]):
            parts.append(model.backbone(batch.contiguous(memory_format=order)).float())
    local = torch.cat(parts)
    if not world.sum(torch.isfinite(local).all().float()) == world.size:
        raise DivergedError("the backbone's features are not finite: lower optim.lr or raise the temperature")
    if world.size == 1:
        return local
    gathered = all_gather_with_gradient(local)  # ranks one after another
    ordered = torch.empty_like(gathered)
    start = 0
    for rank in range(world.size):
        count = world.rows(len(images), rank)
        ordered[rank :: world.size] = gathered[start : start + count]
        start += count
    return ordered
