"""What a study's arms have from before their data changed: kept, and compared with nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any


def superseded(
    kept: Iterable[tuple[str, Sequence[Mapping[str, Any]]]],
    now: Mapping[tuple[str, int], str | None],
    begun: Container[str],
) -> dict[str, int]:
    """By arm: how many finished or begun cells it has from before its data changed.

    Args:
        kept: arms and the cells that they had, with `cell_id`, `seed` and the `fingerprint` of their data.
        now: fingerprint of the data by arm and seed, as the study is now.
        begun: ids of the cells that there is anything of.
    """
    found = Counter(
        name
        for name, cells in kept
        for cell in cells
        if (name, cell["seed"]) in now
        and cell.get("fingerprint") not in (None, now[name, cell["seed"]])
        and cell["cell_id"] in begun
    )
    return dict(found)
