"""How a study spends its epochs: the `scheduler` of a study file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simlap.config.schema import Count, Strict


class NoScheduler(Strict):
    """Every cell runs to the end."""

    kind: Literal["none"]


class Asha(Strict):
    """Asynchronous successive halving (Li et al. 2020), Ray Tune's."""

    kind: Literal["asha"]
    grace_epochs: Count = 5
    """No cell is stopped before it; the first rung."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """Rungs are grace_epochs x reduction_factor^k; at each, the best 1/reduction_factor goes on."""


Scheduler = Annotated[NoScheduler | Asha, Field(discriminator="kind")]
