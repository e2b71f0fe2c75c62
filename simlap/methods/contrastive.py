"""What the contrastive methods share: projector, temperature, and an online linear probe beside the loss."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simlap.config import schema
from simlap.data.batch import Batch
from simlap.methods.base import Method, StepOutput
from simlap.methods.terms import head_metrics, wide
from simlap.nn.filter import FeatureFilter, build_filter
from simlap.nn.projector import build_projector
from simlap.train.world import World

MAX_SCALE = 100.0
"""Of the logits, 1 / temperature, where it is learnt (as in CLIP, Radford et al. 2021)."""


class Contrast(NamedTuple):
    """A contrastive loss: this worker's share of the global batch's."""

    nce: Tensor
    regulariser: Tensor | None = None
    metrics: dict[str, Tensor] = {}


class Contrastive(Method):
    """Backbone, projector, a filter where there is one, and the probe; subclasses say how embeddings are contrasted.

    Loss = the contrastive loss + the probe's cross-entropy + the gates' regulariser, one optimiser.

    Args:
        experiment, num_classes, channels, world: see `Method`.
        gate: which filter to build (default: none).
    """

    def __init__(
        self,
        experiment: schema.Experiment,
        *,
        num_classes: int,
        channels: int,
        world: World,
        gate: schema.Gate | None = None,
    ) -> None:
        super().__init__(experiment, num_classes=num_classes, channels=channels, world=world)
        method = experiment.method
        assert isinstance(method, schema.SimLAP | schema.SupCon | schema.SimCLR)
        kind, embed_dim = _projection(method)
        with self.seeded("projector"):
            self.projector = build_projector(kind, self.num_features, embed_dim, method.projector_hidden_dim)
        self.filter: FeatureFilter | None = None
        if gate is not None:
            with self.seeded("filter"):
                self.filter = build_filter(gate, num_classes, embed_dim)
        with self.seeded("probe"):
            self.probe = nn.Linear(self.num_features, num_classes)
        self.joint = method.probe == "joint"
        self._temperature = method.temperature
        self.log_scale: nn.Parameter | None = None
        if method.learn_temperature:
            self.log_scale = nn.Parameter(torch.tensor(-math.log(method.temperature)))

    @abstractmethod
    def contrast(self, z: Tensor, batch: Batch, temperature: float | Tensor, noise: Tensor | None) -> Contrast:
        """The contrastive loss of this worker's embeddings z [b, D] against all workers'."""

    def criterion(self, h: Tensor, batch: Batch, noise: Tensor | None = None) -> StepOutput:
        """See `Method`."""
        temperature = self._limited_temperature()
        contrast = self.contrast(self.projector(h), batch, temperature, noise)
        logits = wide(self.probe(h if self.joint else h.detach()))  # [b, C]
        probe_loss = F.cross_entropy(logits, batch.labels, reduction="sum") / batch.global_size
        loss = contrast.nce + probe_loss
        if contrast.regulariser is not None:
            loss = loss + contrast.regulariser
        metrics = {"train/nce": contrast.nce, **head_metrics(probe_loss, logits, batch), **contrast.metrics}
        if isinstance(temperature, Tensor):
            metrics["train/temperature"] = temperature / self.world.size
        return self.step_output(loss, metrics)

    def _limited_temperature(self) -> float | Tensor:
        if self.log_scale is None:
            return self._temperature
        with torch.no_grad():  # a clamp with gradient would have none beyond the limit, and stay there
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
        return torch.exp(-self.log_scale)

    def logits(self, h: Tensor) -> Tensor:
        """See `Method`."""
        scores: Tensor = self.probe(h)
        return scores

    def embed(self, h: Tensor) -> Tensor:
        """See `Method`."""
        z: Tensor = self.projector(h)
        return z

    @property
    def gates(self) -> FeatureFilter | None:
        """See `Method`."""
        return self.filter


def _projection(method: schema.SimLAP | schema.SupCon | schema.SimCLR) -> tuple[Literal["mlp", "linear"], int]:
    """Kind and width of the projector."""
    if isinstance(method, schema.SupCon):
        return method.projector_kind, method.width
    return "mlp", method.embed_dim
