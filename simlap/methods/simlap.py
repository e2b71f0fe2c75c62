"""SimLAP (arXiv 2410.18200): backbone, projector, feature filter, subspace InfoNCE and the online probe in one module.

The criterion is part of `forward`, so that a data-parallel wrapper around the module sees every use of a parameter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simlap import config as _config
from simlap import rng
from simlap.evaluate.gates import gate_statistics
from simlap.losses.subspace_info_nce import count_positives, subspace_info_nce
from simlap.nn.backbone import build_backbone
from simlap.nn.filter import build_filter
from simlap.nn.projector import Projector
from simlap.train.distributed import all_gather_with_gradient
from simlap.train.world import World


class StepOutput(NamedTuple):
    """What one step gives."""

    loss: Tensor
    """Scalar to call backward on. Its gradients, averaged over workers, are those of the global batch."""
    metrics: dict[str, Tensor]
    """Scalars without gradient; summed over workers they are the global batch's."""


class SimLAP(nn.Module):
    """The SimLAP training module. Symbols as in docs/method.md: B rows, C classes, D = embed_dim."""

    def __init__(self, experiment: _config.Experiment, *, num_classes: int, channels: int, world: World) -> None:
        super().__init__()
        method, seed = experiment.method, experiment.seed
        self.method, self.world = method, world
        # each part draws its initialisation from a key of its own: arms with one seed share what the factor does not change
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.key(seed, "init", "backbone"))
            self.backbone = build_backbone(experiment.backbone, channels, experiment.data.image_size)
            width = int(self.backbone.num_features)  # type: ignore[arg-type]
            torch.manual_seed(rng.key(seed, "init", "projector"))
            self.projector = Projector(width, method.embed_dim, method.projector_hidden_dim)
            torch.manual_seed(rng.key(seed, "init", "filter"))
            self.filter = build_filter(method.gate, num_classes, method.embed_dim)
            torch.manual_seed(rng.key(seed, "init", "probe"))
            self.probe = nn.Linear(width, num_classes)

    def forward(
        self, images: Tensor, labels: Tensor, pair_labels: Tensor, noise: Tensor | None, global_size: int
    ) -> StepOutput:
        """Loss and metrics of this worker's rows.

        Args:
            images: [b, c, s, s] augmented.
            labels, pair_labels: [b] int64, y and p.
            noise: [b, D] gate noise drawn for the global batch and sliced, or None.
            global_size: B, rows of the global batch.
        """
        world, method = self.world, self.method
        h = self.backbone(images)  # [b, d]
        z = self.projector(h)  # [b, D]
        keys, key_labels = all_gather_with_gradient(z), labels  # [B, D], [B]
        if world.size > 1:
            key_labels = all_gather_with_gradient(labels)
        gate = self.filter(labels, pair_labels, noise)
        own = None
        if not method.keep_self:
            own = world.offset(global_size) + torch.arange(len(labels), device=labels.device)
        positives = world.sum(count_positives(pair_labels, key_labels, own))
        nce = subspace_info_nce(
            z,
            keys,
            gate.gates,
            labels,
            pair_labels,
            key_labels,
            temperature=method.temperature,
            similarity=method.similarity,
            self_index=own,
            num_positives=positives,
        )
        logits = self.probe(h if method.probe == "joint" else h.detach()).float()  # [b, C]
        probe_loss = F.cross_entropy(logits, labels, reduction="sum") / global_size
        regulariser = gate.regulariser / global_size
        # the wrapper averages gradients over workers; the loss is a sum over the global batch
        loss = world.size * (nce + probe_loss + regulariser)
        metrics = {
            "train/loss": (nce + probe_loss + regulariser).detach(),
            "train/nce": nce.detach(),
            "train/probe_loss": probe_loss.detach(),
            "train/probe_top1": (logits.argmax(1) == labels).sum() / global_size,
        }
        for name, value in gate_statistics(gate.gates.detach()).items():
            metrics[f"gate/{name}"] = value / global_size
        return StepOutput(loss, {name: value.detach().float() for name, value in metrics.items()})


def build_method(experiment: _config.Experiment, *, num_classes: int, channels: int, world: World) -> SimLAP:
    """The module of `experiment.method.kind`."""
    return SimLAP(experiment, num_classes=num_classes, channels=channels, world=world)
