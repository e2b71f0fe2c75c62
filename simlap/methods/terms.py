"""Terms that methods share. Each is this worker's share of the global batch's: shares are added up over workers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simlap.data.batch import Batch
from simlap.evaluate.gates import gate_statistics
from simlap.losses import count_positives, subspace_info_nce
from simlap.losses.arguments import Positives, Similarity
from simlap.losses.forms import ring_subspace_info_nce
from simlap.methods.base import Method
from simlap.nn.gate import GateOutput, gate_penalty


def wide(x: Tensor) -> Tensor:
    """At least float32, for the arithmetic of a loss under autocast."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def subspace_nce(
    method: Method,
    z: Tensor,
    gate: GateOutput,
    batch: Batch,
    *,
    temperature: float | Tensor,
    similarity: Similarity = "cosine",
    positives: Positives = "pair",
    keep_self: bool = True,
) -> Tensor:
    """Subspace InfoNCE over the keys of all workers, normalised by the global number of positives.

    Args:
        method: whose world the keys come from.
        z: [b, D] anchors.
        gate: of each anchor.
        keep_self: without, an anchor's own column is no positive.
    """
    key_labels = method.gather(batch.labels, batch)  # [B]
    own = None if keep_self else method.own_columns(batch)
    count = count_positives(batch.labels, batch.pair_labels, key_labels, own, positives)
    labelling = (batch.labels, batch.pair_labels, key_labels)
    options: dict[str, Any] = {
        "gate_index": gate.index,
        "temperature": temperature,
        "similarity": similarity,
        "positives": positives,
        "self_index": own,
        "num_positives": method.world.sum(count),
    }
    if method.ring and method.world.size > 1:
        return ring_subspace_info_nce(z, gate.gates, *labelling, sizes=method.row_counts(batch), **options)
    keys = method.gather(z, batch)  # [B, D]
    return subspace_info_nce(z, keys, gate.gates, *labelling, form=method.loss_form, **options)


def gate_regulariser(gate: GateOutput, penalty: float, batch: Batch) -> Tensor:
    """The filter's own regulariser, and `penalty` x 4 g (1 - g), mean over D and the global batch."""
    total = gate.regulariser
    if penalty > 0:
        total = total + penalty * gate_penalty(gate.gates, gate.counts)
    return total / batch.global_size


def gate_metrics(gate: GateOutput, batch: Batch) -> dict[str, Tensor]:
    """`gate/*`, means over the global batch."""
    statistics = gate_statistics(gate.gates.detach(), gate.counts)
    return {f"gate/{name}": value / batch.global_size for name, value in statistics.items()}


def head_metrics(loss: Tensor, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    """`train/probe_*` of a classifier. loss: its cross-entropy; logits: [b, C].

    In a mixed batch, a prediction is right to the share of the image whose class it is.
    """
    predicted = logits.argmax(1)
    right = (predicted == batch.labels).float()
    if batch.mix is not None:
        right = batch.mix.weight * right + (1 - batch.mix.weight) * (predicted == batch.mix.labels)
    return {"train/probe_loss": loss, "train/probe_top1": right.sum() / batch.global_size}
