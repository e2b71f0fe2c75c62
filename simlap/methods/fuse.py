"""Fuse: classification and subspace InfoNCE in one joint run, the gates made of the classifier's weights (docs/method.md)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from simlap.config import schema
from simlap.data.batch import Batch
from simlap.methods.base import Method, StepOutput
from simlap.methods.terms import gate_metrics, gate_regulariser, head_metrics, subspace_nce
from simlap.nn.filter import FeatureFilter, build_filter
from simlap.nn.margin import ArcGradHead
from simlap.train.world import World


class Fuse(Method):
    """Loss = cross-entropy of the ArcGrad logits + nce_weight x subspace InfoNCE on the head's normalised features.

    Positives are the keys of class y or p; the similarity is the true cosine in the subspace.
    """

    def __init__(self, experiment: schema.Experiment, *, num_classes: int, channels: int, world: World) -> None:
        super().__init__(experiment, num_classes=num_classes, channels=channels, world=world)
        assert isinstance(experiment.method, schema.Fuse)
        self.method = method = experiment.method
        with self.seeded("head"):
            self.head = ArcGradHead(
                self.num_features, num_classes, method.projector_hidden_dim, method.embed_dim, method.temperature
            )
        with self.seeded("filter"):
            self.filter = build_filter(method.gate, num_classes, method.embed_dim, self.head.sign_weights)

    def criterion(self, h: Tensor, batch: Batch, noise: Tensor | None = None) -> StepOutput:
        """See `Method`."""
        z, logits, _ = self.head(h)  # [b, D], [b, C]
        gate = self.filter(batch.labels, batch.pair_labels, noise, batch.pairs)
        head_loss = F.cross_entropy(logits, batch.labels, reduction="sum") / batch.global_size
        nce = subspace_nce(self, z, gate, batch, temperature=self.method.temperature, positives="either")
        loss = head_loss + self.method.nce_weight * nce + gate_regulariser(gate, self.method.gate_penalty, batch)
        metrics = {"train/nce": nce, **head_metrics(head_loss, logits, batch), **gate_metrics(gate, batch)}
        return self.step_output(loss, metrics)

    def logits(self, h: Tensor) -> Tensor:
        """See `Method`. The cosines, without ArcGrad's scale."""
        cosines: Tensor = self.head(h).evaluation_logits
        return cosines

    def embed(self, h: Tensor) -> Tensor:
        """See `Method`. Unit vectors."""
        z: Tensor = self.head(h).z
        return z

    @property
    def gates(self) -> FeatureFilter:
        """See `Method`."""
        return self.filter
