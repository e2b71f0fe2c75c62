"""SimLAP (arXiv 2410.18200): subspace InfoNCE between class pairs, in the subspace that the filter's gate opens."""

from __future__ import annotations

from torch import Tensor

from simlap.config import schema
from simlap.data.batch import Batch
from simlap.methods.contrastive import Contrast, Contrastive
from simlap.methods.terms import gate_metrics, gate_regulariser, subspace_nce
from simlap.train.world import World


class SimLAP(Contrastive):
    """Steps 1 to 6 of docs/method.md."""

    def __init__(self, experiment: schema.Experiment, *, num_classes: int, channels: int, world: World) -> None:
        assert isinstance(experiment.method, schema.SimLAP)
        gate = experiment.method.gate
        super().__init__(experiment, num_classes=num_classes, channels=channels, world=world, gate=gate)
        self.method = experiment.method

    def contrast(self, z: Tensor, batch: Batch, temperature: float | Tensor, noise: Tensor | None) -> Contrast:
        """See `Contrastive`."""
        assert self.filter is not None
        gate = self.filter(batch.labels, batch.pair_labels, noise, batch.pairs)
        nce = subspace_nce(
            self,
            z,
            gate,
            batch,
            temperature=temperature,
            similarity=self.method.similarity,
            keep_self=self.method.keep_self,
        )
        return Contrast(nce, gate_regulariser(gate, self.method.gate_penalty, batch), gate_metrics(gate, batch))
