"""What a plan will take, and what it can show: device-hours from cells that ran, detectable differences from their spread."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from simlap.config import Experiment

if TYPE_CHECKING:
    from simlap.study.plan import Plan
    from simlap.study.planned import PlannedCell

Shape = tuple[object, ...]


@dataclass(frozen=True)
class Hours:
    """Device-hours of what is pending."""

    by_line: dict[str, float]
    """By arm or stage; those without an estimate are left out."""
    total: float | None
    """None where nothing has run yet."""
    guessed: bool
    """Whether some lines were estimated from cells of another shape."""
    probed: bool = False
    """Whether some were estimated from a probe on this machine."""


def shape(experiment: Experiment) -> Shape:
    """What decides how long an epoch takes: two experiments that agree in it are timed alike.

    Everything of data, backbone, method and training counts but how many epochs there are; seeds, the optimiser's numbers and
    protocols do not.
    """
    return (
        experiment.data.model_dump_json(),
        experiment.backbone.model_dump_json(),
        experiment.method.model_dump_json(exclude={"temperature"}),
        experiment.optim.name,
        experiment.train.model_dump_json(exclude={"epochs"}),
        experiment.precision,
        experiment.resources.model_dump_json(),
    )


def device_hours(cells: Sequence[PlannedCell]) -> Hours:
    """From cells of the same shape that have run, else from a probe on this machine, else from all others.

    Cells that find their share of a GPU themselves (`gpus_per_worker: auto`) count with what those before them have left them.
    """
    from simlap.study.packing import Packing  # which shapes there are is told here

    packing = Packing(cells)
    shapes: dict[int, Shape] = {}
    timed: dict[Shape, list[float]] = {}

    def shape_of(cell: PlannedCell) -> Shape:
        if id(cell.stage) not in shapes:
            shapes[id(cell.stage)] = shape(cell.stage.experiment)
        return shapes[id(cell.stage)]

    for cell in cells:
        if cell.facts.epoch_s is not None:
            timed.setdefault(shape_of(cell), []).append(cell.facts.epoch_s)
    known = {key: fmean(values) for key, values in timed.items()}
    tried = _from_probes(cells, known, shape_of)
    known |= tried
    everywhere = fmean(itertools.chain(*timed.values())) if timed else fmean(tried.values()) if tried else None
    by_line: dict[str, float] = {}
    guessed = False
    for cell in cells:
        if not cell.epochs_left or everywhere is None:
            continue
        seconds = known.get(shape_of(cell))
        guessed |= seconds is None
        seconds = everywhere if seconds is None else seconds
        hours = cell.epochs_left * seconds * packing.share(cell).devices / 3600
        by_line[cell.line] = by_line.get(cell.line, 0.0) + hours
    return Hours(by_line, sum(by_line.values()) if everywhere is not None else None, guessed, bool(tried))


def _from_probes(
    cells: Sequence[PlannedCell], known: Mapping[Shape, float], shape_of: Callable[[PlannedCell], Shape]
) -> dict[Shape, float]:
    """Seconds of an epoch of the shapes that are to run and have not, where a probe found them."""
    from simlap.study import probe

    wanted = {shape_of(cell): cell.stage.experiment for cell in cells if cell.epochs_left}
    found = {key: probe.known(key, experiment) for key, experiment in wanted.items() if key not in known}
    return {key: seconds for key, seconds in found.items() if seconds is not None}


def to_probe(cells: Sequence[PlannedCell]) -> list[tuple[Shape, Experiment]]:
    """The shapes that are to run and have not, each with an experiment of it."""
    timed = {shape(cell.stage.experiment) for cell in cells if cell.facts.epoch_s is not None}
    wanted = {shape(cell.stage.experiment): cell.stage.experiment for cell in cells if cell.epochs_left}
    return [(key, experiment) for key, experiment in wanted.items() if key not in timed]


@dataclass(frozen=True)
class Power:
    """What the planned seeds can show on the reported metric."""

    difference: float
    """The smallest true difference to the baseline that is found with 80 % power at a family-wise level of 5 %; `inf` with one
    seed."""
    basis: str
    """Where the spread comes from, in words."""
    std: float
    """Of the paired differences, in the metric's units."""


def detectable(plan: Plan) -> Power | None:
    """From the spread of the paired differences so far, else the baseline's; None where neither is known yet.

    With no pair yet, arms are taken for independent: sqrt(2) times the baseline's standard deviation. Seeds that share their
    random draws usually do better.
    """
    name = plan.study.spec.metric.report
    values = {
        arm.name: {
            c.seed: c.facts.metrics[name]
            for c in plan.of_arm(arm)
            if c.facts.state == "done" and name in c.facts.metrics
        }
        for arm in plan.study.arms
    }
    baseline = next(arm.name for arm in plan.study.arms if arm.baseline)
    own = values.pop(baseline)
    paired = [[found[seed] - own[seed] for seed in found.keys() & own.keys()] for found in values.values()]
    paired = [differences for differences in paired if len(differences) > 1]
    seeds, comparisons = len(plan.study.spec.seed_list()), max(1, len(values))
    if paired:
        freedom = sum(len(differences) - 1 for differences in paired)
        std = math.sqrt(sum((len(d) - 1) * stdev(d) ** 2 for d in paired) / freedom)
        basis = f"from the paired differences of {len(paired)} arm{'s' * (len(paired) > 1)} so far"
    elif len(own) > 1:
        std = math.sqrt(2) * stdev(own.values())
        basis = f"from {len(own)} seeds of the baseline, arms taken for independent"
    else:
        return None
    from simlap.study.power import smallest_difference  # scipy's distributions take a while to import

    return Power(smallest_difference(seeds, std, comparisons=comparisons), basis, std)
