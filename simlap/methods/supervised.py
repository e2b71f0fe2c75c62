"""Plain supervised training; from weights that were learnt before, fine-tuning."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simlap.config import schema
from simlap.data.batch import Batch
from simlap.methods.base import Method, StepOutput
from simlap.methods.terms import head_metrics, wide
from simlap.train.world import World


class Supervised(Method):
    """Cross-entropy of a linear classifier on the backbone's features, with dropout, label smoothing and mixed labels."""

    def __init__(self, experiment: schema.Experiment, *, num_classes: int, channels: int, world: World) -> None:
        super().__init__(experiment, num_classes=num_classes, channels=channels, world=world)
        assert isinstance(experiment.method, schema.Supervised)
        self.smoothing, self.dropout = experiment.method.label_smoothing, experiment.method.dropout
        with self.seeded("head"):
            self.head = nn.Linear(self.num_features, num_classes)

    def criterion(self, h: Tensor, batch: Batch, noise: Tensor | None = None) -> StepOutput:
        """See `Method`. The targets of a mixed batch are timm's `mixup_target`: smoothed first, then mixed."""
        logits = wide(self.head(self._dropped(h, noise)))  # [b, C]
        loss = self._cross_entropy(logits, batch.labels)  # [b]
        if batch.mix is not None:
            weight = batch.mix.weight
            loss = weight * loss + (1 - weight) * self._cross_entropy(logits, batch.mix.labels)
        loss = loss.sum() / batch.global_size
        return self.step_output(loss, head_metrics(loss, logits, batch))

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.smoothing)

    def _dropped(self, h: Tensor, noise: Tensor | None) -> Tensor:
        if not (self.training and self.dropout):
            return h
        if noise is None or noise.shape != h.shape:
            got = None if noise is None else [*noise.shape]
            raise ValueError(f"in training mode dropout needs noise of shape {[*h.shape]} (see draw_noise), not {got}")
        return h * (noise >= self.dropout) / (1 - self.dropout)

    def draw_noise(self, num_rows: int, generator: torch.Generator) -> Tensor | None:
        """Uniform draws for the dropout of the global batch, [B, d], or None without dropout.

        Drawn for the global batch, so that the number of workers does not change what is dropped.
        """
        if not self.dropout:
            return None
        return torch.rand(num_rows, self.num_features, generator=generator, device=generator.device)

    def logits(self, h: Tensor) -> Tensor:
        """See `Method`."""
        scores: Tensor = self.head(h)
        return scores
