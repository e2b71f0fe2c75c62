"""`simlap simulate`: what a scheduler would find, at which cost, on recorded or on simulated curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from simlap.cli.app import StorageOption, app
from simlap.cli.output import complain, out, plain_table
from simlap.errors import ConfigError

if TYPE_CHECKING:
    from simlap.study.curves import Curves
    from simlap.study.scheduling import Asha, NoScheduler, Race
    from simlap.study.simulate import Result, Source


KINDS = ("none", "asha", "race")
"""What is compared where no `--scheduler` is given, as far as it fits."""


@app.command()
def simulate(
    study: Annotated[str, typer.Argument(help="Study file, or the name of a study with recorded cells.")],
    scheduler: Annotated[
        list[str] | None,
        typer.Option(
            "--scheduler",
            metavar="KIND[:KEY=VALUE,...]",
            help="none, asha or race, with settings as in a study file, e.g. asha:grace_epochs=2,reduction_factor=4; others are "
            "the study's, or the defaults. Repeatable (default: all three kinds, those that fit).",
        ),
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
    from simlap.study.scheduling import defaults, label
    from simlap.study.simulate import Replay, Settings, Synthetic
    from simlap.study.simulate import simulate as play

    if effect is not None and (curves is not None or write_curves is not None):
        raise ConfigError("curves are either simulated (--effect) or recorded", key="--effect", value=effect)
    if std <= 0:
        raise ConfigError("must be above 0", key="--std", value=std)
    plan = _Plan.of(study, storage)
    compared = plan.schedulers(scheduler or KINDS)
    source: Source
    if effect is None:
        recorded = files.read_curves(curves, baseline) if curves is not None else _recorded(plan.name, storage)
        if write_curves is not None:
            files.write_curves(recorded, write_curves)
            out.print(f"curves         {write_curves.absolute()}", soft_wrap=True, markup=False)
        source = replay = Replay(recorded)
        names = [recorded.arms[i] for i in replay.order]
        described = f"replays of {len(recorded.arms)} arms x {len(recorded.seeds)} recorded seeds"
        if len(recorded.seeds) < 10:
            complain(
                f"[yellow]only {len(recorded.seeds)} recorded seeds:[/] replays draw them again and again, and rates of "
                "wrong and right calls are rough"
            )
    else:
        names, epochs = plan.arms, plan.epochs
        rungs = {rung for one in compared for rung in one.rungs(epochs)}
        effects = (0.0, effect * std, *[0.0] * (len(names) - 2))
        source = Synthetic(effects, std, tuple(sorted({*rungs, epochs})))
        described = f"simulated studies of {len(names)} arms, one better than the baseline by {effect:g} x {std:g}"
    protected = frozenset({0, *(i for i, name in enumerate(names) if name in plan.protected)})
    planned = seeds or plan.seeds
    settings = Settings(replicates, planned, slots, tolerance, seed, protected)
    misfits = {label(one): _misfit(one, planned, source, study) for one in compared}
    for error in misfits.values():
        if error is not None and scheduler:
            raise error
    fitting = [one for one in compared if misfits[label(one)] is None]
    results = {label(one): play(source, one, settings) for one in fitting}
    out.print(f"{replicates} {described}; {planned} seeds, {source.epochs[-1]} epochs")
    _print(results, tolerance)
    for told in dict.fromkeys(f"{one.kind}, where not said: {defaults(one)}" for one in fitting if one.kind != "none"):
        out.print(told, style="dim", soft_wrap=True, markup=False)
    for name, error in misfits.items():
        if error is not None:
            reason = ConfigError(error.message, value=error.value)
            out.print(f"{name} is left out: {reason}", style="yellow", soft_wrap=True, markup=False)


@dataclass(frozen=True)
class _Plan:
    """What the study says of schedulers, seeds and epochs."""

    name: str
    scheduler: NoScheduler | Asha | Race
    seeds: int
    arms: list[str]
    """The baseline first, the others in their order."""
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
            arms = [arm.name for arm in sorted(loaded.arms, key=lambda arm: not arm.baseline)]
            return cls(
                loaded.name, loaded.spec.scheduler, len(loaded.spec.seed_list()), arms, epochs, protected
            )  # fmt: skip
        view = read_study(Storage(storage), study)
        tree = yaml.parse(view.text, file=study) or {}
        own = {"scheduler": tree["scheduler"]} if "scheduler" in tree else {}
        chosen = validate(Chosen, own, file=f"the file of study {study}")
        protected = frozenset(arm.name for arm in view.arms if arm.protected)
        arms = [arm.name for arm in sorted(view.arms, key=lambda arm: not arm.is_baseline)]
        return cls(study, chosen.scheduler, len(view.seeds), arms, view.epochs, protected)

    def schedulers(self, texts: Sequence[str]) -> list[NoScheduler | Asha | Race]:
        """As the command line has them, each once. Raises ConfigError."""
        from simlap.study.scheduling import parse_scheduler

        found: list[NoScheduler | Asha | Race] = []
        for text in texts:
            one = parse_scheduler(text, self.scheduler)
            if one not in found:
                found.append(one)
        return found


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


def _misfit(scheduler: NoScheduler | Asha | Race, seeds: int, source: Source, file: str) -> ConfigError | None:
    """Why the scheduler cannot be put on these curves; None where it can."""
    absent = [rung for rung in scheduler.rungs(source.epochs[-1]) if rung not in source.epochs]
    if absent:
        return ConfigError(
            f"{scheduler.kind} decides at epochs at which the curves have no value",
            file=file, key="scheduler", value=absent, choices=[str(epoch) for epoch in source.epochs],
        )  # fmt: skip
    if scheduler.kind == "race":
        try:
            scheduler.looks(seeds)
        except ValueError as error:
            return ConfigError(str(error), file=file, key="seeds")
    return None


def _share(result: Result, share: float | None) -> str:
    """With its binomial standard error."""
    return "-" if share is None else f"{100 * share:.1f}±{100 * result.error(share):.1f}%"


_COLUMNS: dict[str, Callable[[Result], str]] = {
    "epochs": lambda result: f"{result.epochs:.1%}",
    "epochs if all equal": lambda result: f"{result.null_epochs:.1%}",
    "best found": lambda result: _share(result, result.found),
    "equal called different": lambda result: _share(result, result.false_difference),
    "different noticed": lambda result: "-" if result.power is None else f"{result.power:.1%}",
    "seeds per arm": lambda result: f"{result.seeds:.1f}",
}


def _print(results: dict[str, Result], tolerance: float) -> None:
    """The table, a line for each label, and what its headings mean."""
    table = plain_table("scheduler", *_COLUMNS, numbers=len(_COLUMNS))
    rows = [[text(result) for text in _COLUMNS.values()] for result in results.values()]
    # headings are broken between words, so that the settings have the room
    for column, name, values in zip(table.columns[1:], _COLUMNS, zip(*rows, strict=True), strict=True):
        column.width = max(map(len, (*name.split(), *values)))
    for name, row in zip(results, rows, strict=True):
        table.add_row(escape(name), *row)
    out.print(table)
    notes = (
        "epochs: share of those of all cells; epochs if all equal: the same where no arm differs from another",
        f"best found: the arm to go on with is within {tolerance:g} of the true best; ± one binomial standard error",
        "equal called different: how often any arm is called better or worse although all are equal",
        "different noticed: share of the truly different arms that are called so, rightly",
        "seeds per arm: those that ran to the end",
    )
    for note in notes:
        out.print(note, style="dim", soft_wrap=True)
