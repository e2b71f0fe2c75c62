"""Which results other code computed than the rest, and what there is from before the data changed; as it was recorded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from simlap.record.view import CellView, StudyView
from simlap.report.compare import planned_cells

_NAMED = 3
"""So many arms are named in a sentence."""


@dataclass(frozen=True)
class OtherCode:
    """Results that were computed by other code than the study was last applied with."""

    text: str
    detail: str
    differs: bool
    """Whether arms, or seeds, differ in that; else all results are of one version."""


def other_code(study: StudyView) -> OtherCode | None:
    """None where all results are of the code that the study was last applied with, as far as is recorded; an older record does
    not say which that was, and the one that most results are of is taken for it."""
    counted = {arm.name: [c for c in planned_cells(study, arm) if c is not None and c.codes] for arm in study.arms}
    cells = [cell for found in counted.values() for cell in found]
    stages = [stage.cell for stage in study.stages if stage.cell.codes]
    versions = Counter(tuple(cell.codes) for cell in (*cells, *stages))
    if not cells:
        return None
    most = Counter(code for cell in cells for code in cell.codes).most_common(1)[0][0]
    wanted = {cell.cell_id: arm.code or most for arm in study.arms for cell in arm.cells}
    wanted |= {stage.cell.cell_id: stage.code or most for stage in study.stages}
    known = {cell.cell_id: cell for cell in (*cells, *stages)}

    def is_other(cell: CellView) -> bool:
        before = known.get(cell.start) if cell.start is not None else None
        return any(code != wanted[cell.cell_id] for code in cell.codes) or (before is not None and is_other(before))

    lines = {
        name: _where([cell for cell in found if is_other(cell)])
        for name, found in counted.items()
        if any(is_other(cell) for cell in found)
    }
    if not lines:
        return None
    detail = "\n".join(f"{name}: {where}" for name, where in lines.items())
    if len(versions) == 1 and len(next(iter(versions))) == 1:
        return OtherCode("All results are of one version of the code, which has changed since.", detail, differs=False)
    reference = "the study was last applied with" if any(arm.code for arm in study.arms) else "most are"
    text = (
        f"Not all results are of one version of the code, and may differ by that. Of another than {reference}: "
        f"{names(list(lines))}. `--rerun stale` runs them anew."
    )
    return OtherCode(text, detail, differs=True)


def superseded_text(study: StudyView) -> str | None:
    """What arms have from before their data changed; None where there is nothing."""
    if not study.superseded:
        return None
    count = sum(study.superseded.values())
    runs = "1 run is" if count == 1 else f"{count} runs are"
    return f"{runs} from before the data changed, kept and not compared: {names(list(study.superseded))}."


def names(arms: list[str]) -> str:
    """The first few, and how many more."""
    more = len(arms) - _NAMED
    return ", ".join(arms[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _where(cells: list[CellView]) -> str:
    """`seeds 0, 1 (3f2a…), seed 2 (3f2a…, then 9bc1…)`."""
    seeds: dict[tuple[str, ...], list[int]] = {}
    for cell in cells:
        seeds.setdefault(tuple(cell.codes), []).append(cell.seed)
    return "; ".join(
        f"seed{'s' * (len(found) > 1)} {', '.join(map(str, found))} ({', then '.join(codes)})"
        for codes, found in seeds.items()
    )
