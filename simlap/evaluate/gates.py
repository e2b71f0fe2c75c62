"""What the gates do: how open they are, and how decided."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def gate_statistics(gates: Tensor, counts: Tensor | None = None) -> dict[str, Tensor]:
    """Sums over the rows of a batch, to be added over batches and workers and divided by the number of rows.

    `mean`: of the gates. `entropy`: Bernoulli entropy in nats, mean over D. `activation`: sum over D (what the authors
    log). `open_fraction`: share of gates above one half.

    Args:
        gates: g in [0, 1], [b, D]; [U, D] with counts.
        counts: [U], how many rows have each gate.

    Returns:
        Scalars, float32, on the device of `gates`.
    """
    g = gates.detach().float()
    width = g.shape[1]

    def over_rows(values: Tensor) -> Tensor:
        return values.sum() if counts is None else (values.sum(dim=1) * counts).sum()

    activation = over_rows(g)
    return {
        "mean": activation / width,
        "entropy": -over_rows(torch.xlogy(g, g) + torch.xlogy(1 - g, 1 - g)) / width,
        "activation": activation,
        "open_fraction": over_rows((g > 0.5).float()) / width,
    }
