"""The comparison of `step.py` and `epoch.py`: the training loop that one would write first. It has nothing to run by itself.

The same modules as simlap's (timm's backbone, projector, filter, probe), the same batch, optimiser, schedule, precision and
number of threads. What differs: images are augmented one by one, by timm's transform on Pillow images in DataLoader workers; the
loss is the definition, with its B x N x D tensors; everything is eager, and numbers are logged with `.item()`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from simlap.config import Experiment, schema
from simlap.data.splits import ImageSet, Splits
from simlap.methods import build_method
from simlap.train.optim import learning_rate
from simlap.train.world import World


class Images(Dataset[tuple[Tensor, int]]):
    """Decoded images, augmented by timm when they are asked for."""

    def __init__(self, images: ImageSet, augment: schema.Augment, size: int, splits: Splits) -> None:
        self.images = [Image.fromarray(image) for image in images.images.permute(0, 2, 3, 1).numpy()]
        self.labels: list[int] = images.labels.tolist()
        jitter = (augment.brightness, augment.contrast, augment.saturation, augment.hue)
        self.transform = create_transform(
            size,
            is_training=True,
            scale=augment.crop_scale,
            ratio=augment.crop_ratio,
            interpolation=augment.interpolation,
            hflip=augment.flip,
            color_jitter=jitter if any(jitter) else None,  # type: ignore[arg-type]
            auto_augment=augment.rand_augment,
            re_prob=augment.erase,
            re_mode="pixel",
            mean=splits.mean,
            std=splits.std,
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def subspace_info_nce(z: Tensor, gates: Tensor, labels: Tensor, pair_labels: Tensor, temperature: float) -> Tensor:
    """The definition (docs/method.md). z, gates: [B, D]; labels, pair_labels: int64 [B]."""
    g = gates[:, None]  # [B, 1, D]
    logits = F.cosine_similarity(g * z[:, None], g * z[None], dim=-1) / temperature  # [B, B]
    positive = labels[None] == pair_labels[:, None]
    negative = (labels[None] != labels[:, None]) & ~positive
    of_negatives = torch.logsumexp(logits.masked_fill(~negative, -math.inf), dim=1, keepdim=True)
    losses = torch.logaddexp(logits, of_negatives) - logits
    return losses[positive].mean()


class Loop:
    """The loop. For `method.kind: simlap` with a filter without noise.

    Args:
        experiment: what to train; `train.channels_last` and `train.compile` are simlap's own affair.
        splits: its data.
        device: where to.
    """

    def __init__(self, experiment: Experiment, splits: Splits, device: torch.device) -> None:
        self.experiment, self.device = experiment, device
        self.model: Any = build_method(
            experiment, num_classes=splits.num_classes, channels=splits.channels, world=World()
        ).to(device)
        optim = experiment.optim
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        self.optimizer = create_optimizer_v2(
            [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}],
            optim.name,
            lr=optim.lr,
            momentum=optim.momentum,
        )
        data = experiment.data
        self.loader: Any = DataLoader(
            Images(splits.train, data.augment, data.image_size, splits),
            batch_size=experiment.train.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=experiment.resources.cpus_per_worker,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )
        self.step = 0
        self._batches: Iterator[tuple[Tensor, Tensor]] = self._forever()

    def run(self, steps: int) -> None:
        """Go on for so many steps."""
        self.model.train()
        for _ in range(steps):
            images, labels = next(self._batches)
            rate = learning_rate(
                self.experiment.optim, self.step, steps_per_epoch=len(self.loader), epochs=self.experiment.train.epochs
            )
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
            self.log = self._train_step(images, labels)
            self.step += 1

    def workers(self) -> list[int]:
        """Process ids of the DataLoader's workers."""
        iterator = self.loader._iterator
        return [worker.pid for worker in iterator._workers] if iterator is not None else []

    def _forever(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.loader

    def _train_step(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        method: Any = self.experiment.method
        pair_labels = labels[torch.randperm(len(labels), device=labels.device)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.experiment.precision == "bf16"):
            h = self.model.backbone(images)
            z = self.model.projector(h)
            gates = self.model.filter(labels, pair_labels).gates
            logits = self.model.probe(h.detach())
        nce = subspace_info_nce(z.float(), gates, labels, pair_labels, method.temperature)
        probe_loss = nn.functional.cross_entropy(logits.float(), labels)
        loss = nce + probe_loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        top1 = (logits.argmax(1) == labels).float().mean()
        return {"loss": loss.item(), "nce": nce.item(), "probe_loss": probe_loss.item(), "top1": top1.item()}
