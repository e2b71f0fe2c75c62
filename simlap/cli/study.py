"""Studies: `simlap plan`, `ablate`, `status`, `report`, `sync`."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from simlap.cli.app import (
    FAILED,
    INTERRUPTED,
    OK,
    AddressOption,
    SetOption,
    StorageOption,
    TrackingOption,
    app,
)
from simlap.cli.output import complain, out, print_shipped, quiet_stderr, this_command
from simlap.errors import UserError

if TYPE_CHECKING:
    from simlap.record.view import StudyView
    from simlap.study.apply import Outcome
    from simlap.study.plan import Plan, PlannedCell


class Format(enum.StrEnum):
    """Formats of `simlap report`."""

    html = "html"
    md = "md"
    latex = "latex"


@app.command()
def plan(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    storage: StorageOption = "./runs",
    address: AddressOption = None,
    set_: SetOption = None,
) -> None:
    """Show what `ablate` would do; start nothing."""
    from simlap.run.cluster import connect, local_node
    from simlap.storage import Storage
    from simlap.study.apply import check_resources
    from simlap.study.plan import make_plan
    from simlap.study.spec import load_study

    loaded = load_study(study, tuple(set_ or []))
    made = make_plan(loaded, Storage(storage))
    check_resources(loaded, connect(address) if address else [local_node()])
    _print_plan(made)


@app.command()
def ablate(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    storage: StorageOption = "./runs",
    address: AddressOption = None,
    tracking_uri: TrackingOption = None,
    set_: SetOption = None,
) -> None:
    """Run what is missing, resume what was interrupted, keep what is done; then report."""
    from simlap.record.mlflow import resolve_tracking_uri
    from simlap.storage import Storage
    from simlap.study.apply import apply
    from simlap.study.spec import load_study

    uri = resolve_tracking_uri(tracking_uri)
    loaded = load_study(study, tuple(set_ or []))
    with quiet_stderr():
        outcome = apply(loaded, Storage(storage), address=address, tracking_uri=uri, console=out)
    _print_outcome(outcome, uri)


@app.command()
def status(name: Annotated[str, typer.Argument(help="Study name or file.")], storage: StorageOption = "./runs") -> None:
    """Show how far a study is, and what it says so far."""
    from simlap.report import print_report

    print_report(_study(name, storage), out)


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="Study name or file.")],
    format: Annotated[Format, typer.Option("--format", help="Format.")] = Format.html,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write there instead of to the standard output.")
    ] = None,
    storage: StorageOption = "./runs",
) -> None:
    """Write the report of a study."""
    from simlap.report import render

    text = render(_study(name, storage), format.value)
    if output is None:
        sys.stdout.write(text)
    else:
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot be written: {error}", file=str(output), key="--output") from error
        out.print(str(output.absolute()), soft_wrap=True)


@app.command()
def sync(
    name: Annotated[str, typer.Argument(help="Study name or file, or the id of a run.")],
    storage: StorageOption = "./runs",
    tracking_uri: TrackingOption = None,
) -> None:
    """Rebuild or complete the MLflow records from the journal."""
    from simlap.record.mlflow import resolve_tracking_uri
    from simlap.record.ship import ship_once
    from simlap.run.single import record, reopen
    from simlap.storage import Storage

    store, uri = Storage(storage), resolve_tracking_uri(tracking_uri)
    with quiet_stderr():
        if store.exists(f"cells/{name}/config.yaml"):
            shipped = record(reopen(store, name), uri)
        else:
            shipped = ship_once(store, _study(name, storage).name, uri)
    print_shipped(shipped, uri)
    raise typer.Exit(FAILED if shipped.errors else OK)


def _study_name(name: str) -> str:
    """The study's name, where its file was given."""
    from simlap.study.spec import load_study

    return load_study(name).name if Path(name).suffix in (".yaml", ".yml") else name


def _study(name: str, storage: str) -> StudyView:
    from simlap.record.journal import read_study
    from simlap.storage import Storage

    return read_study(Storage(storage), _study_name(name))


def _print_plan(made: Plan) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("arm", no_wrap=True, overflow="ellipsis")
    table.add_column("cells", no_wrap=True)
    table.add_column("epochs to run", justify="right")
    for name in dict.fromkeys(stage.line for stage in made.stages):
        stages = [stage for stage in made.stages if stage.line == name]
        users = {cell_id for stage in stages for cell_id in made.uses[stage.cell_id].cell_ids}
        _add_row(table, f"{name} (shared by {len(users)} cells)", stages)
    for arm in made.study.arms:
        note = " (baseline)" if arm.baseline else " (protected)" if arm.protected else ""
        _add_row(table, arm.name + note, made.of_arm(arm))
    for name in made.removed:
        table.add_row(escape(name), "-", "0")
    out.print(table)
    hours = made.device_hours()
    estimate = "unknown until something has run" if hours is None else f"about {hours:.2g} device-hours"
    pending = sum(cell.pending for cell in made.cells)
    before = f"{sum(s.pending for s in made.stages)} of {len(made.stages)} stages and " if made.stages else ""
    out.print(f"{before}{pending} of {len(made.cells)} cells to run: {estimate}")
    out.print("+ new  = done or stopped  > resume or evaluate  - removed  ! failed, to be run again", style="dim")


def _add_row(table: Table, name: str, cells: list[PlannedCell]) -> None:
    from simlap.study.plan import SYMBOLS

    marks = "".join(SYMBOLS[cell.action] for cell in cells)
    table.add_row(escape(name), marks, str(sum(cell.epochs_left for cell in cells)))


def _print_outcome(outcome: Outcome, uri: str) -> None:
    from simlap.report import print_report

    if outcome.ran == 0:
        out.print("nothing to run: every cell is done")
    print_report(outcome.view, out)
    for path in outcome.report:
        if path.endswith(".html"):
            out.print(f"report         {path}", soft_wrap=True, markup=False)
    print_shipped(outcome.shipped, uri, study=True)
    if not outcome.finished:
        complain(f"interrupted; continue with: [bold]{escape(this_command())}[/]")
        raise typer.Exit(INTERRUPTED)
    if outcome.failed:
        complain(f"[bold red]{len(outcome.failed)} failed cells[/]; the same command runs them again")
        raise typer.Exit(FAILED)
