"""Supervised contrastive learning, the filterless relative of SimLAP, in three forms."""

from __future__ import annotations

import torch
from torch import Tensor

from simlap.config import schema
from simlap.data.batch import Batch
from simlap.losses import count_anchors, count_terms, one_to_one, supcon
from simlap.methods.contrastive import Contrast, Contrastive
from simlap.methods.terms import subspace_nce
from simlap.nn.gate import open_gates
from simlap.train.world import World


class SupCon(Contrastive):
    """`multi_positive`: SimLAP with open gates. `one_to_one`: PK batches, one positive between every two of a class's rows.
    `khosla`: the loss of Khosla et al. 2020. Pair labels say whose images an anchor's positives are.
    """

    def __init__(self, experiment: schema.Experiment, *, num_classes: int, channels: int, world: World) -> None:
        super().__init__(experiment, num_classes=num_classes, channels=channels, world=world)
        assert isinstance(experiment.method, schema.SupCon)
        self.method = experiment.method
        self.num_slots: int | None = None
        """Rows of a class in a PK batch: K x views."""
        if isinstance(experiment.data.sampling, schema.PKSampling):
            self.num_slots = experiment.data.sampling.images * experiment.data.augment.views

    def contrast(self, z: Tensor, batch: Batch, temperature: float | Tensor, noise: Tensor | None) -> Contrast:
        """See `Contrastive`."""
        match self.method.variant:
            case "multi_positive":
                gate, keep_self = open_gates(len(z), z.shape[1], z.device), self.method.keep_self
                return Contrast(subspace_nce(self, z, gate, batch, temperature=temperature, keep_self=keep_self))
            case "one_to_one":
                return Contrast(self._one_to_one(z, batch, temperature))
            case "khosla":
                return Contrast(self._khosla(z, batch, temperature))

    def _khosla(self, z: Tensor, batch: Batch, temperature: float | Tensor) -> Tensor:
        keys, key_labels = self.gather(z, batch), self.gather(batch.labels, batch)  # [B, D], [B]
        own = self.own_columns(batch)
        count = self.world.sum(count_anchors(batch.pair_labels, key_labels, own))
        return supcon(z, keys, batch.pair_labels, key_labels, own, temperature=temperature, num_anchors=count)

    def _one_to_one(self, z: Tensor, batch: Batch, temperature: float | Tensor) -> Tensor:
        assert self.num_slots is not None
        slots = batch.rows % self.num_slots  # rows are in [P, K, views] order
        keys = self.gather(z, batch)  # [B, D]
        key_labels, key_slots = self.gather(torch.stack([batch.labels, slots], dim=1), batch).unbind(1)  # [B] each
        labelling = (batch.pair_labels, key_labels, slots, key_slots)
        count = self.world.sum(count_terms(*labelling))
        return one_to_one(z, keys, *labelling, temperature=temperature, num_terms=count)
