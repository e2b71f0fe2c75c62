"""How `simlap plan` is laid out: a line per stage and arm, then what it takes and what it can show. 80 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from simlap.cli.output import out

if TYPE_CHECKING:
    from simlap.study.estimate import Hours
    from simlap.study.fractional import AliasTable
    from simlap.study.plan import Plan
    from simlap.study.planned import PlannedCell
    from simlap.study.racing import Racing

_MARKS = 20
"""More marks than these become counts: the line would not fit."""
_LEGEND = "+ new  = done  > resume  ~ stale  - removed  ! failed"
_RACE_LEGEND = "? if the race needs it  . not needed"


def print_plan(made: Plan, *, only: bool) -> None:
    """Print a plan. `only`: arms that nothing is to be done with now are left out."""
    from simlap.study.estimate import device_hours
    from simlap.study.saved import superseded

    hours = device_hours(made.everything)
    old = superseded(made)
    rows: list[tuple[str, str, str, str]] = [("arm", "cells", "epochs", "device-h")]

    def add(name: str, line: str, cells: Sequence[PlannedCell]) -> None:
        epochs = sum(cell.epochs_left for cell in cells)
        estimate = f"{hours.by_line[line]:.2g}" if line in hours.by_line else "?" if epochs else ""
        most = "≤ " if any(cell.pending and cell.perhaps for cell in cells) else ""
        rows.append(
            (
                name,
                _marks(cells, old.get(line, 0)),
                f"{most}{epochs}",
                f"{most}{estimate}" if estimate[:1].isdigit() else estimate,
            )
        )

    stages: dict[str, list[PlannedCell]] = {}
    for stage in made.stages:
        stages.setdefault(stage.line, []).append(stage)
    for line, found in stages.items():
        users = {cell_id for stage in found for cell_id in made.uses[stage.cell_id].cell_ids}
        add(f"{line} (shared by {len(users)} cells)", line, found)
    searches: dict[str, list[PlannedCell]] = {}
    for trial in (*made.trials, *(cell for cell in made.later if cell.trial is not None)):
        searches.setdefault(trial.line, []).append(trial)
    for line, found in searches.items():
        if any(cell.selected for cell in found) or not only:
            add(line, line, found)
    waiting: dict[str, list[PlannedCell]] = {}
    for cell in made.later:
        if cell.trial is None:
            waiting.setdefault(cell.line, []).append(cell)
    hidden = 0
    for arm in made.study.arms:
        cells = made.of_arm(arm) or waiting.get(arm.name, [])
        if only and not any(cell.selected for cell in cells):
            hidden += 1
            continue
        note = " (baseline)" if arm.baseline else " (protected)" if arm.protected else ""
        if made.racing is not None and (decision := made.racing.standing.verdicts.get(arm.name)) is not None:
            note += f" {decision.verdict}"
        add(arm.name + note, arm.name, cells)
    kept = {arm.name: sum(cell["cell_id"] in made.index.begun for cell in arm.cells) for arm in made.kept}
    for name in made.removed:
        rows.append((name, f"- {kept[name]}" if kept[name] > _MARKS else "-" * max(1, kept[name]), "0", ""))
    _print_rows(rows)
    _print_searches(made)
    if hidden:
        out.print(f"{hidden} other arms are left alone (--only)", style="dim")
    if made.study.aliases is not None:
        _print_aliases(made.study.aliases)
    _print_totals(made, hours)
    _print_power(made)
    _print_budget(made, hours.total)
    out.print(_LEGEND if made.racing is None else f"{_LEGEND}\n{_RACE_LEGEND}", style="dim")


def probe_shapes(made: Plan) -> None:
    """Time the shapes of a plan that nothing is known of, on this machine."""
    from simlap.study.estimate import to_probe
    from simlap.study.probe import MAX_SHAPES, probe

    asked = to_probe([*made.stages, *made.cells])
    with out.status(f"a few steps of {min(len(asked), MAX_SHAPES)} shapes"):
        done = probe(asked)
    for reason in done.failed:
        out.print(f"no probe of {reason}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if done.left:
        out.print(f"{done.left} more shapes are estimated from those that were probed")


def _print_rows(rows: Sequence[tuple[str, str, str, str]]) -> None:
    """A table by hand: rich takes milliseconds a row, and there may be thousands. A name too long for the line stands above."""
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    room = max(20, out.width - sum(widths[1:]) - 6)
    first = min(widths[0], room)
    lines = []
    for name, marks, epochs, hours in rows:
        rest = f"{marks:<{widths[1]}}  {epochs:>{widths[2]}}  {hours:>{widths[3]}}".rstrip()
        lines += [f"{name:<{first}}  {rest}"] if len(name) <= first else [name, f"{'':<{first}}  {rest}"]
    out.print(lines[0], style="bold", markup=False, highlight=False, soft_wrap=True)
    out.out("\n".join(lines[1:]), highlight=False)


def _print_searches(made: Plan) -> None:
    """What searches have found, and what is not known before they have."""
    from simlap.study.search import values_text

    tuning = made.tuning
    if tuning is None or not tuning.searches:
        return
    for arm in made.study.arms:
        search, values = tuning.of_arm.get(arm.name), tuning.values(arm)
        if search is not None and values is not None and search.best is not None:
            text = f"tuned: {arm.name} at {values_text(values)} (trial {search.best.number} of {search.of})"
            out.print(text, markup=False, soft_wrap=True)
        elif arm.name in tuning.hopeless:
            out.print(f"failed: {arm.name}: {tuning.hopeless[arm.name]}", style="red", markup=False, soft_wrap=True)


def _marks(cells: Sequence[PlannedCell], old: int) -> str:
    from simlap.study.planned import SYMBOLS

    if cells and all(cell.is_later for cell in cells):
        return f"+ {len(cells)} after the search"
    to_come = sum(cell.is_later for cell in cells)
    if to_come:
        known = [cell for cell in cells if not cell.is_later]
        return f"{_marks(known, old)} + {to_come} later"
    marks = "".join("?" if cell.pending and cell.perhaps else SYMBOLS[cell.action] for cell in cells) + "~" * old
    if len(marks) <= _MARKS:
        return marks
    return "  ".join(f"{mark} {count}" for mark, count in Counter(marks).items())


def _print_aliases(table: AliasTable) -> None:
    """What the arms of a fractional design cannot tell apart."""
    out.print(
        f"fraction of {table.runs} arms, resolution {table.resolution}: {', '.join(table.generators)}", soft_wrap=True
    )
    clear = [row.effect for row in table.rows if not row.aliases]
    for row in table.rows:
        if row.aliases:
            out.print(f"  {row.effect} is not told from {', '.join(row.aliases)}", highlight=False, soft_wrap=True)
    if clear:
        out.print(
            f"  clear of effects of up to {table.order} factors: {', '.join(clear)}", highlight=False, soft_wrap=True
        )
    if table.excluded:
        out.print(f"  {table.excluded} of its arms are left out, so that this holds only roughly", soft_wrap=True)


def _print_totals(made: Plan, hours: Hours) -> None:
    from simlap.study.stale import left_behind, unfinished

    estimate = "unknown until something has run" if hours.total is None else f"about {hours.total:.2g} device-hours"
    if hours.probed:
        estimate += ", from a probe on this machine"
    if hours.guessed and hours.total is not None:
        estimate += ", in part from arms of another shape"
    later = [cell for cell in made.later if cell.trial is None]
    pending = sum(cell.pending for cell in (*made.cells, *later))
    before = f"{sum(s.pending for s in made.stages)} of {len(made.stages)} stages and " if made.stages else ""
    if trials := [*made.trials, *(cell for cell in made.later if cell.trial is not None)]:
        before += f"{sum(cell.pending for cell in trials)} of {len(trials)} runs of trials and "
    if made.racing is not None:
        _print_race(made.racing, made.cells, estimate)
    else:
        out.print(f"{before}{pending} of {len(made.cells) + len(later)} cells to run: {estimate}", soft_wrap=True)
    count = Counter(cell.action for cell in made.cells)
    if failed := count["given_up"]:
        out.print(f"{failed} failed cells are left alone; `--retry failed` runs them again", soft_wrap=True)
    left_ids = unfinished(made)
    ended = sum(
        cell.action == "stale" and cell.facts.state in ("done", "stopped") and cell.cell_id not in left_ids
        for cell in made.cells
    )
    if ended:
        out.print(
            f"{ended} cells were computed by other code and are kept; `--rerun stale` runs them anew", soft_wrap=True
        )
    if left := left_behind(made):
        out.print(left, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _print_race(racing: Racing, cells: Sequence[PlannedCell], estimate: str) -> None:
    """What the next look waits for, and what may come after it."""
    now = [cell for cell in cells if cell.pending and not cell.perhaps]
    later = sum(cell.pending and cell.perhaps for cell in cells)
    asked = racing.needed
    ends = [(asked.get((cell.line, cell.seed), cell.stage.experiment.train.epochs), cell) for cell in now]
    epochs = sum(max(0, end - (0 if cell.action == "rerun" else cell.facts.epoch)) for end, cell in ends)
    more = f", up to {later} more if the race needs them" if later else ""
    most = estimate.replace("about", "at most about")
    out.print(f"{len(now)} of {len(cells)} cells to run now ({epochs} epochs){more}: {most}", soft_wrap=True)
    if racing.over:
        out.print("the race is decided")
    elif not now:
        out.print("the race waits for cells that are left alone here")


def _print_power(made: Plan) -> None:
    from simlap.study.estimate import detectable
    from simlap.study.reach import detection, out_of_margin

    power, metric = detectable(made), made.study.spec.metric.report
    seeds = len(made.study.spec.seed_list())
    if power is None:
        out.print("smallest detectable difference: unknown until two seeds of the baseline are done", style="dim")
    elif seeds < 2:
        out.print("one seed shows no difference: give at least two")
    else:
        out.print(
            f"smallest detectable difference ({seeds} seeds, 80 % power, family-wise 5 %): {power.difference:.2g} in "
            f"{escape(metric)}, {power.basis}"
        )
    if (found := detection(made)) is not None:
        out.print(
            found.words(metric), style="yellow" if found.low else None, markup=False, highlight=False, soft_wrap=True
        )
    if reason := out_of_margin(made):
        out.print(reason, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _print_budget(made: Plan, hours: float | None) -> None:
    from simlap.study.budget import budget_left

    if made.guard is None:
        return
    budget, spent = made.guard.budget, made.spent
    used = {
        "device-hours": (spent.device_hours, budget.device_hours),
        "hours": (spent.wall_hours, budget.wall_hours),
        "cells": (len(spent.cells), budget.cells),
    }
    parts = [f"{value:.3g} of {limit:g} {name}" for name, (value, limit) in used.items() if limit is not None]
    out.print("budget: " + ", ".join(parts) + " used")
    if reason := budget_left(budget, spent, hours, made.held_back):
        out.print(f"does not fit: {reason}. Cells run in order until the budget is reached", style="yellow")
