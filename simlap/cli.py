"""The command line: argument parsing and printing, nothing else."""

from __future__ import annotations

import contextlib
import enum
import os
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from simlap.errors import UserError

if TYPE_CHECKING:
    from simlap.record.ship import ShipReport
    from simlap.study.apply import Outcome
    from simlap.study.plan import Plan

app = typer.Typer(
    name="simlap",
    help="SimLAP experiments and ablation studies on Ray, recorded in MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console(highlight=False)
_errors: list[TextIO] = []
"""Where errors are printed while standard error itself is redirected."""

OK, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

StorageOption = Annotated[
    str, typer.Option("--storage", help="Where runs are kept: a folder or any pyarrow.fs URI (s3://...).")
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="Ray cluster to use (default: Ray on this machine).")
]
TrackingOption = Annotated[
    str | None, typer.Option("--tracking-uri", help="MLflow tracking server (default: MLflow's own sqlite store).")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Change a value of the (base) experiment: a.b=v.")]


class Format(enum.StrEnum):
    """Formats of `simlap report`."""

    html = "html"
    md = "md"
    latex = "latex"


def main() -> None:
    """Entry point. Exit codes: 0 ok, 1 failed cells, 2 wrong input, 130 interrupted."""
    warnings.filterwarnings("ignore")
    try:
        code = app(standalone_mode=False)  # of typer.Exit; None where a command just returns
    except UserError as error:
        _complain(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(WRONG_INPUT)
    except (typer.Abort, KeyboardInterrupt):
        _complain(f"interrupted; continue with: [bold]{escape(_this_command())}[/]")
        sys.exit(INTERRUPTED)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # click's usage errors
            _complain(f"[bold red]error:[/] {escape(error.format_message())}")
            sys.exit(WRONG_INPUT)
        raise
    sys.exit(code or OK)


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="Experiment file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes: a.b=v ...")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    storage: StorageOption = "./runs",
    address: AddressOption = None,
    tracking_uri: TrackingOption = None,
    set_: SetOption = None,
) -> None:
    """Run one experiment through Ray Train and record it."""
    from simlap.config import load_experiment
    from simlap.record.mlflow import resolve_tracking_uri
    from simlap.run.single import execute, prepare, record
    from simlap.storage import Storage

    uri = resolve_tracking_uri(tracking_uri)
    store = Storage(storage)
    loaded = load_experiment(experiment, [*(overrides or []), *(set_ or [])])
    prepared = prepare(loaded, store, file=str(experiment), address=address)
    view = prepared.view
    where = store.describe(f"cells/{view.cell_id}")
    if view.epoch and view.state != "done" and not resume:
        raise UserError(
            f"{where}: this run was {view.state} after epoch {view.epoch} of {loaded.train.epochs}; add --resume to continue it"
        )
    out.print(
        f"run {view.cell_id}: {loaded.train.epochs} epochs, {loaded.resources.workers} worker(s), in {where}",
        soft_wrap=True,
    )
    with _quiet_stderr():
        view = execute(prepared, file=str(experiment), address=address, on_epoch=_print_epoch)
        shipped = record(prepared, uri)
    if view.state == "failed":
        _complain(f"[bold red]failed:[/] {escape(view.reason or '')}\n{escape(view.error or '')}")
    elif view.state == "interrupted":
        _complain(f"stopped after epoch {view.epoch}; continue with: [bold]{escape(_this_command())}[/]")
    else:
        _print_result(view.result)
    out.print(f"run directory  {where}", soft_wrap=True, markup=False)
    _print_shipped(shipped, uri)
    raise typer.Exit({"done": OK, "interrupted": INTERRUPTED}.get(view.state, FAILED))


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
    with _quiet_stderr():
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
        output.write_text(text, encoding="utf-8")
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
    with _quiet_stderr():
        if store.exists(f"cells/{name}/config.yaml"):
            shipped = record(reopen(store, name), uri)
        else:
            shipped = ship_once(store, _study(name, storage).name, uri)
    _print_shipped(shipped, uri)
    raise typer.Exit(FAILED if shipped.errors else OK)


def _study_name(name: str) -> str:
    """The study's name, where its file was given."""
    from simlap.study.spec import load_study

    return load_study(name).name if Path(name).suffix in (".yaml", ".yml") else name


def _study(name: str, storage: str):  # type: ignore[no-untyped-def]
    from simlap.record.journal import read_study
    from simlap.storage import Storage

    return read_study(Storage(storage), _study_name(name))


def _print_plan(made: Plan) -> None:
    from simlap.study.plan import SYMBOLS

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("arm", no_wrap=True, overflow="ellipsis")
    table.add_column("cells", no_wrap=True)
    table.add_column("epochs to run", justify="right")
    for arm in made.study.arms:
        cells = made.of_arm(arm)
        marks = "".join(SYMBOLS[cell.action] for cell in cells)
        note = " (baseline)" if arm.baseline else " (protected)" if arm.protected else ""
        table.add_row(escape(arm.name + note), marks, str(sum(cell.epochs_left for cell in cells)))
    for name in made.removed:
        table.add_row(escape(name), "-", "0")
    out.print(table)
    hours = made.device_hours()
    estimate = "unknown until something has run" if hours is None else f"about {hours:.2g} device-hours"
    out.print(f"{len(made.pending)} of {len(made.cells)} cells to run: {estimate}")
    out.print("+ new  = done or stopped  > resume or evaluate  - removed  ! failed, to be run again", style="dim")


def _print_outcome(outcome: Outcome, uri: str) -> None:
    from simlap.report import print_report

    if outcome.ran == 0:
        out.print("nothing to run: every cell is done")
    print_report(outcome.view, out)
    for path in outcome.report:
        if path.endswith(".html"):
            out.print(f"report         {path}", soft_wrap=True, markup=False)
    _print_shipped(outcome.shipped, uri, study=True)
    if not outcome.finished:
        _complain(f"interrupted; continue with: [bold]{escape(_this_command())}[/]")
        raise typer.Exit(INTERRUPTED)
    if outcome.failed:
        _complain(f"[bold red]{len(outcome.failed)} failed cells[/]; the same command runs them again")
        raise typer.Exit(FAILED)


def _print_shipped(shipped: ShipReport | None, uri: str, *, study: bool = False) -> None:
    from simlap.record.tracking.uri import run_link, study_link

    if shipped is None:
        return
    if shipped.experiment_id:
        link = study_link(uri, shipped.experiment_id) if study else run_link(uri, shipped.experiment_id, shipped.run_id)
        out.print(f"MLflow         {link}", soft_wrap=True, markup=False)
    for error in shipped.errors:
        _complain(f"[yellow]MLflow is behind:[/] {escape(error)}; `simlap sync` completes it")


def _print_epoch(row) -> None:  # type: ignore[no-untyped-def]
    shown = ("train/loss", "val/probe_top1", "val/knn_top1", "collapse/effective_rank", "time/epoch_s")
    values = "  ".join(f"{name} {row.metrics[name]:.4g}" for name in shown if name in row.metrics)
    out.print(f"epoch {row.epoch:>4}  {values}", soft_wrap=True)


def _print_result(result: dict[str, float]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in sorted(result.items()):
        table.add_row(name, f"{value:.4f}")
    out.print(table)


def _complain(text: str) -> None:
    Console(file=_errors[-1] if _errors else sys.stderr, highlight=False).print(text, soft_wrap=True)


def _this_command() -> str:
    words = sys.argv[1:]
    return shlex.join(["simlap", *words, *(["--resume"] if words[:1] == ["run"] and "--resume" not in words else [])])


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Ray's C++ side writes to file descriptor 2 whatever its loggers are told. That goes to a file; our own words do not."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with (
        tempfile.NamedTemporaryFile(prefix="simlap-", suffix=".log", delete=False) as log,
        os.fdopen(terminal, "w") as real,
    ):
        os.dup2(log.fileno(), 2)
        _errors.append(real)
        try:
            yield
        finally:
            _errors.pop()
            os.dup2(terminal, 2)
    if Path(log.name).stat().st_size == 0:
        Path(log.name).unlink()


if __name__ == "__main__":
    main()
