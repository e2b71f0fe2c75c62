"""SimCLR (Chen et al. 2020): NT-Xent between the views of an image, without labels."""

from __future__ import annotations

from torch import Tensor

from simlap.data.batch import Batch
from simlap.losses import count_view_pairs, nt_xent
from simlap.methods.contrastive import Contrast, Contrastive


class SimCLR(Contrastive):
    """Positives are the other rows of the same image, negatives all other rows. Only the probe looks at labels."""

    def contrast(self, z: Tensor, batch: Batch, temperature: float | Tensor, noise: Tensor | None) -> Contrast:
        """See `Contrastive`."""
        keys, key_samples = self.gather(z, batch), self.gather(batch.samples, batch)  # [B, D], [B]
        rows = (batch.samples, key_samples, self.own_columns(batch))
        count = self.world.sum(count_view_pairs(*rows))
        return Contrast(nt_xent(z, keys, *rows, temperature=temperature, num_positives=count))
