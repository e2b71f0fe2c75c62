"""`simlap simulate`: what a scheduler would find, at which cost, on recorded or on simulated curves."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simlap.cli.app import StorageOption, app
from simlap.cli.output import complain, out, plain_table
from simlap.errors import ConfigError

if TYPE_CHECKING:
    from simlap.study.curves import Curves
    from simlap.study.scheduling import Asha, NoScheduler, Race
    from simlap.study.simulate import Result, Source


class SchedulerKind(enum.StrEnum):
    """Schedulers of `simlap simulate`."""

    none = "none"
    asha = "asha"
    race = "race"


@app.command()
def simulate(
    study: Annotated[str, typer.Argument(help="Study file, or the name of a study with recorded cells.")],
    scheduler: Annotated[
        list[SchedulerKind] | None, typer.Option("--scheduler", help="Which one, repeatable (default: all three).")
    ] = None,
    replicates: Annotated[int, typer.Option("--replicates", min=1, help="How many studies.")] = 1000,
    curves: Annotated[
        Path | None, typer.Option("--curves", help="Parquet file of curves: arm, seed, epoch, value.")
    ] = None,
    baseline: Annotated[str | None, typer.Option("--baseline", help="The baseline among the arms of --curves.")] = None,
    effect: Annotated[
        float | None, typer.Option("--effect", help="Simulate curves: one arm is better by so many --std.")
    ] = None,
    std: Annotated[
        float, typer.Option("--std", help="With --effect: standard deviation of paired differences, metric's units.")
    ] = 0.01,
    seeds: Annotated[int | None, typer.Option("--seeds", min=2, help="Planned seeds (default: the study's).")] = None,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Cells that run at a time (asha).")] = 4,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", min=0.0, help="An arm this close to the best counts as found, metric's units."),
    ] = 0.005,
    seed: Annotated[int, typer.Option("--seed", help="Of the simulation's random numbers.")] = 0,
    write_curves: Annotated[
        Path | None, typer.Option("--write-curves", help="Write the recorded curves there as Parquet.")
    ] = None,
    storage: StorageOption = "./runs",
) -> None:
    """Put many studies through schedulers: how often each finds the best arm, and at which share of the epochs."""
    from simlap.study import curves as files
    from simlap.study.simulate import Replay, Settings, Synthetic
    from simlap.study.simulate import simulate as play

    if effect is not None and (curves is not None or write_curves is not None):
        raise ConfigError("curves are either simulated (--effect) or recorded", key="--effect", value=effect)
    if std <= 0:
        raise ConfigError("must be above 0", key="--std", value=std)
    plan = _Plan.of(study, storage)
    source: Source
    if effect is None:
        recorded = files.read_curves(curves, baseline) if curves is not None else _recorded(plan.name, storage)
        if write_curves is not None:
            files.write_curves(recorded, write_curves)
            out.print(f"curves         {write_curves.absolute()}", soft_wrap=True, markup=False)
        source = replay = Replay(recorded)
        names = [recorded.arms[i] for i in replay.order]
        protected = frozenset({0, *(i for i, name in enumerate(names) if name in plan.protected)})
        described = f"replays of {len(recorded.arms)} arms x {len(recorded.seeds)} recorded seeds"
        if len(recorded.seeds) < 10:
            complain(
                f"[yellow]only {len(recorded.seeds)} recorded seeds:[/] replays draw them again and again, and rates of "
                "wrong and right calls are rough"
            )
    else:
        epochs = plan.epochs
        rungs = {rung for kind in SchedulerKind for rung in plan.settings(kind).rungs(epochs)}
        effects = (0.0, effect * std, *[0.0] * (plan.arms - 2))
        source = Synthetic(effects, std, tuple(sorted({*rungs, epochs})))
        protected = frozenset({0})
        described = f"simulated studies of {plan.arms} arms, one better than the baseline by {effect:g} x {std:g}"
    planned = seeds or plan.seeds
    settings = Settings(replicates, planned, slots, tolerance, seed, protected)
    kinds = list(dict.fromkeys(scheduler or list(SchedulerKind)))
    results = []
    for kind in kinds:
        chosen = plan.settings(kind)
        _check(chosen, planned, source, study)
        results.append(play(source, chosen, settings))
    out.print(f"{replicates} {described}; {planned} seeds, {source.epochs[-1]} epochs")
    _print(results, tolerance)
    for kind in kinds:
        values = plan.settings(kind).model_dump(exclude={"kind"}, exclude_none=True)
        told = ", ".join(f"{name} {value}" for name, value in values.items())
        out.print(f"{kind.value}: {told or 'no settings'}", style="dim", markup=False, highlight=False)


@dataclass(frozen=True)
class _Plan:
    """What the study says of schedulers, seeds and epochs."""

    name: str
    scheduler: NoScheduler | Asha | Race
    seeds: int
    arms: int
    epochs: int
    protected: frozenset[str]

    @classmethod
    def of(cls, study: str, storage: str) -> _Plan:
        from simlap.config import validate, yaml
        from simlap.record.journal import read_study
        from simlap.storage import Storage
        from simlap.study.scheduling import Chosen

        if Path(study).suffix in (".yaml", ".yml"):
            from simlap.study.spec import load_study

            loaded = load_study(study)
            epochs = max(arm.experiment.train.epochs for arm in loaded.arms)
            protected = frozenset(arm.name for arm in loaded.arms if arm.protected)
            scheduler, planned = loaded.spec.scheduler, len(loaded.spec.seed_list())
            return cls(loaded.name, scheduler, planned, len(loaded.arms), epochs, protected)
        view = read_study(Storage(storage), study)
        tree = yaml.parse(view.text, file=study) or {}
        own = {"scheduler": tree["scheduler"]} if "scheduler" in tree else {}
        chosen = validate(Chosen, own, file=f"the file of study {study}")
        protected = frozenset(arm.name for arm in view.arms if arm.protected)
        return cls(study, chosen.scheduler, len(view.seeds), len(view.arms), view.epochs, protected)

    def settings(self, kind: SchedulerKind) -> NoScheduler | Asha | Race:
        """The study's own settings where it names this scheduler, else the defaults."""
        from simlap.study.scheduling import Asha, NoScheduler, Race

        if self.scheduler.kind == kind.value:
            return self.scheduler
        match kind:
            case SchedulerKind.none:
                return NoScheduler(kind="none")
            case SchedulerKind.asha:
                return Asha(kind="asha")
            case SchedulerKind.race:
                return Race(kind="race")


def _recorded(name: str, storage: str) -> Curves:
    """The study's own curves. What is missing is said."""
    from simlap.record.journal import read_study
    from simlap.storage import Storage
    from simlap.study.curves import from_view

    recorded = from_view(read_study(Storage(storage), name))
    if recorded.missing:
        complain(
            f"[yellow]{len(recorded.missing)} cells did not run to the end;[/] their seeds are left out of all arms: "
            + "; ".join(recorded.missing[:5])
        )
    return recorded.curves


def _check(scheduler: NoScheduler | Asha | Race, seeds: int, source: Source, file: str) -> None:
    """Raises ConfigError where the scheduler cannot be put on these curves."""
    absent = [rung for rung in scheduler.rungs(source.epochs[-1]) if rung not in source.epochs]
    if absent:
        raise ConfigError(
            f"{scheduler.kind} decides at epochs at which the curves have no value",
            file=file, key="scheduler", value=absent, choices=[str(epoch) for epoch in source.epochs],
        )  # fmt: skip
    if scheduler.kind == "race":
        try:
            scheduler.looks(seeds)
        except ValueError as error:
            raise ConfigError(str(error), file=file, key="seeds", value=seeds) from error


def _print(results: list[Result], tolerance: float) -> None:
    columns = (
        "epochs",
        "best found",
        "equal called different",
        "different noticed",
        "seeds per arm",
        "epochs if all equal",
    )
    table = plain_table("scheduler", *columns, numbers=len(columns))
    for result in results:
        table.add_row(
            result.scheduler,
            f"{result.epochs:.1%}",
            f"{result.null_epochs:.1%}",
            _with_error(result, result.found),
            "-" if result.false_difference is None else _with_error(result, result.false_difference),
            "-" if result.power is None else f"{result.power:.1%}",
            f"{result.seeds:.1f}",
        )
    out.print(table)
    notes = (
        "epochs: share of those of all cells, and where all arms are equal",
        f"best found: the arm to go on with is within {tolerance:g} of the true best; ± one binomial standard error",
        "wrongly different: any arm is called better or worse although all are equal",
        "noticed: different arms that are called so, rightly; seeds: that ran to the end, per arm",
    )
    for note in notes:
        out.print(note, style="dim", soft_wrap=True)


def _with_error(result: Result, share: float) -> str:
    return f"{100 * share:.1f}±{100 * result.error(share):.1f}%"
