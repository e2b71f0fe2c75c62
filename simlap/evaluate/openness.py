"""What is said of gates that are all open, or all closed. Without torch: reports are made where nothing is trained."""

from __future__ import annotations


def gate_warning(mean: float, *, near: float = 0.01) -> str | None:
    """A warning where all gates are near 0 or near 1 (`mean` within `near` of it), None otherwise."""
    if mean < near:
        return (
            f"all gates are near 0 (mean {mean:.4f}): the subspaces are empty and the loss says little; "
            "try a lower learning rate or another method.gate"
        )
    if mean > 1 - near:
        return (
            f"all gates are near 1 (mean {mean:.4f}): the filter does nothing, as with `method.gate: {{kind: open}}`; "
            "try a lower learning rate or another method.gate"
        )
    return None
