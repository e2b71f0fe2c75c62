"""Recorded learning curves of a study: arm x seed x epoch -> decision metric. What `simlap simulate` replays."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from simlap.errors import ConfigError
from simlap.record.view import ArmView, CellView, StudyView

_SCHEMA = pa.schema(
    [
        pa.field("arm", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("epoch", pa.int64(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Curves:
    """Curves of cells that all ran to the end: every arm with every seed."""

    arms: tuple[str, ...]
    baseline: str
    seeds: tuple[int, ...]
    epochs: tuple[int, ...]
    """Epochs at which the metric was measured in every cell; the last one is the end."""
    values: NDArray[np.float64]
    """[arm, seed, epoch], the decision metric."""
    mode: Mode = "max"

    def truth(self) -> NDArray[np.float64]:
        """[arm]: mean of the decision metric at the end over all recorded seeds, more is better.

        What the full grid would find: a scheduler sees no other metric, and is not to blame where another one tells otherwise.
        """
        sign = 1.0 if self.mode == "max" else -1.0
        return sign * np.asarray(self.values[:, :, -1].mean(axis=1))

    def column(self, epoch: int, why: str, file: str | None = None) -> int:
        """Where `epoch` is in `values`. Raises ConfigError where it was not measured."""
        if epoch not in self.epochs:
            raise ConfigError(
                f"{why} decides at an epoch at which not every curve has a value",
                file=file, key="epoch", value=epoch, choices=[str(e) for e in self.epochs],
            )  # fmt: skip
        return self.epochs.index(epoch)


@dataclass(frozen=True)
class Recorded:
    """Curves, and what could not be used."""

    curves: Curves
    missing: list[str]
    """Cells that did not run to the end, in words. Their seeds are left out of every arm."""


def from_view(view: StudyView) -> Recorded:
    """The curves of a study's cells: of all arms, with the seeds that every arm finished. Raises ConfigError without two."""
    by_seed = {(arm.name, cell.seed): cell for arm in view.arms for cell in arm.cells}
    missing, seeds = [], list(view.seeds)
    for arm, seed in itertools.product(view.arms, view.seeds):
        cell = by_seed.get((arm.name, seed))
        if cell is None or cell.state != "done":
            missing.append(f"{arm.name} · seed {seed}: {cell.state if cell else 'new'}")
            if seed in seeds:
                seeds.remove(seed)
    baseline = next((arm.name for arm in view.arms if arm.is_baseline), None)
    if len(seeds) < 2 or baseline is None:
        listed = "; ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ConfigError(
            f"fewer than two seeds ran to the end in every arm; missing: {listed or 'everything'}. Run it with "
            "`scheduler: {kind: none}`, give recorded curves with --curves, or simulate curves with --effect and --std",
            key="STUDY", value=view.name,
        )  # fmt: skip
    rows = (row for arm in view.arms for seed in seeds for row in _rows(arm, by_seed[arm.name, seed], view))
    return Recorded(_assemble(rows, baseline, view.mode, view.name), missing)


def _rows(arm: ArmView, cell: CellView, view: StudyView) -> Iterable[tuple[str, int, int, float]]:
    return [
        (arm.name, cell.seed, row.epoch, row.metrics[view.metric]) for row in cell.rows if view.metric in row.metrics
    ]


def write_curves(curves: Curves, path: Path) -> None:
    """Write curves as Parquet: columns arm, seed, epoch and value; baseline and mode in the metadata."""
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "epoch": epoch,
            "value": float(curves.values[i, j, k]),
        }
        for i, arm in enumerate(curves.arms)
        for j, seed in enumerate(curves.seeds)
        for k, epoch in enumerate(curves.epochs)
    ]
    schema = _SCHEMA.with_metadata({"simlap.baseline": curves.baseline, "simlap.mode": curves.mode})
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def read_curves(path: Path, baseline: str | None = None) -> Curves:
    """Read curves. Raises ConfigError.

    Args:
        path: a Parquet file with the columns arm, seed, epoch and value.
        baseline: the arm that others are compared with, where the file does not name it.
    """
    file = str(path)
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"cannot be read: {error}", file=file, key="--curves") from error
    if lacking := [name for name in _SCHEMA.names if name not in table.column_names]:
        raise ConfigError("lacks columns", file=file, key="--curves", value=lacking, choices=table.column_names)
    data = [table.column(name).to_pylist() for name in _SCHEMA.names]
    metadata = table.schema.metadata or {}
    baseline = baseline or metadata.get(b"simlap.baseline", b"").decode()
    mode = metadata.get(b"simlap.mode", b"max").decode()
    if mode not in ("max", "min"):
        raise ConfigError("no such mode", file=file, key="simlap.mode", value=mode, choices=["max", "min"])
    return _assemble(zip(*data, strict=True), baseline, "max" if mode == "max" else "min", file)


def _assemble(rows: Iterable[tuple[str, int, int, float]], baseline: str, mode: Mode, file: str) -> Curves:
    cells: dict[tuple[str, int], dict[int, float]] = {}
    for arm, seed, epoch, value in rows:
        cells.setdefault((arm, seed), {})[epoch] = value
    arms = tuple(dict.fromkeys(arm for arm, _ in cells))
    seeds = tuple(sorted({seed for _, seed in cells}))
    if baseline not in arms:
        raise ConfigError("no such arm", file=file, key="--baseline", value=baseline, choices=arms)
    everything = list(itertools.product(arms, seeds))
    if absent := [f"{arm} · seed {seed}" for arm, seed in everything if (arm, seed) not in cells]:
        raise ConfigError(f"every arm needs every seed; missing: {', '.join(absent[:5])}", file=file, key="--curves")
    ends = {max(cell) for cell in cells.values()}
    if len(ends) > 1:
        raise ConfigError(
            "curves end at different epochs: all cells have to run to the same end", file=file, key="epoch", value=sorted(ends)
        )  # fmt: skip
    epochs = tuple(sorted(set.intersection(*(set(cell) for cell in cells.values()))))
    values = np.array([[[cells[arm, seed][epoch] for epoch in epochs] for seed in seeds] for arm in arms])
    if not np.isfinite(values).all():
        raise ConfigError("every value must be finite", file=file, key="value")
    return Curves(arms, baseline, seeds, epochs, values, mode)
