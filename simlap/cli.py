"""The command line: argument parsing and printing, nothing else."""

from __future__ import annotations

import enum
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
err = Console(stderr=True, highlight=False)

OK, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

StorageOption = Annotated[str, typer.Option("--storage", help="Where runs are kept: a folder or any pyarrow.fs URI (s3://...).")]
AddressOption = Annotated[str | None, typer.Option("--address", help="Ray cluster to use (default: Ray on this machine).")]
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
        app(standalone_mode=False)
    except UserError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(WRONG_INPUT)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        err.print(f"interrupted; continue with: [bold]{escape(_this_command())}[/]", soft_wrap=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # click's usage errors
            err.print(f"[bold red]error:[/] {escape(error.format_message())}", soft_wrap=True)
            sys.exit(WRONG_INPUT)
        raise


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
    from simlap.record.ship import ship_run
    from simlap.run.single import execute, prepare
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
    out.print(f"run {view.cell_id}: {loaded.train.epochs} epochs, {loaded.resources.workers} worker(s), in {where}", soft_wrap=True)
    with _quiet_stderr():
        view = execute(prepared, file=str(experiment), address=address, on_epoch=_print_epoch)
        shipped = ship_run(store, view.cell_id, loaded.name, uri)
    if view.state == "failed":
        err.print(f"[bold red]failed:[/] {escape(view.reason or '')}\n{escape(view.error or '')}", soft_wrap=True)
    elif view.state == "interrupted":
        err.print(f"stopped after epoch {view.epoch}; continue with: [bold]{escape(_this_command())} --resume[/]", soft_wrap=True)
    else:
        _print_result(view.result)
    out.print(f"run directory  {where}", soft_wrap=True)
    _print_shipped(shipped)
    raise typer.Exit({"done": OK, "interrupted": INTERRUPTED}.get(view.state, FAILED))


@app.command()
def plan(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    storage: StorageOption = "./runs",
    set_: SetOption = None,
) -> None:
    """Show what `ablate` would do; start nothing."""
    from simlap.run.cluster import local_node
    from simlap.storage import Storage
    from simlap.study.apply import check_resources
    from simlap.study.plan import make_plan
    from simlap.study.spec import load_study

    loaded = load_study(study, tuple(set_ or []))
    made = make_plan(loaded, Storage(storage))
    check_resources(loaded, [local_node()])
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
    _print_outcome(outcome)


@app.command()
def status(name: Annotated[str, typer.Argument(help="Study name or file.")], storage: StorageOption = "./runs") -> None:
    """Show how far a study is, and what it says so far."""
    from simlap.report import print_report

    print_report(_study(name, storage), out)


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="Study name or file.")],
    format: Annotated[Format, typer.Option("--format", help="Format.")] = Format.html,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write there instead of to the standard output.")] = None,
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
    from simlap.record.journal import read_cell
    from simlap.record.mlflow import resolve_tracking_uri
    from simlap.record.ship import ship_once, ship_run
    from simlap.storage import Storage

    store, uri = Storage(storage), resolve_tracking_uri(tracking_uri)
    with _quiet_stderr():
        if store.exists(f"cells/{name}/config.yaml"):
            shipped = ship_run(store, name, read_cell(store, name).config["name"], uri)
        else:
            shipped = ship_once(store, _study_name(name), uri)
    _print_shipped(shipped)
    raise typer.Exit(FAILED if shipped.errors else OK)


def _study_name(name: str) -> str:
    """The study's name, where its file was given."""
    from simlap.study.spec import load_study

    return load_study(name).name if Path(name).suffix in (".yaml", ".yml") else name


def _study(name: str, storage: str):  # type: ignore[no-untyped-def]  # noqa: ANN202 - imported late
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


def _print_outcome(outcome: Outcome) -> None:
    from simlap.report import print_report

    if outcome.ran == 0:
        out.print("nothing to run: every cell is done")
    print_report(outcome.view, out)
    for path in outcome.report:
        if path.endswith(".html"):
            out.print(f"report  {path}", soft_wrap=True)
    _print_shipped(outcome.shipped)
    if not outcome.finished:
        err.print(f"interrupted; continue with: [bold]{escape(_this_command())}[/]", soft_wrap=True)
        raise typer.Exit(INTERRUPTED)
    if outcome.failed:
        err.print(f"[bold red]{len(outcome.failed)} failed cells[/]; the same command runs them again", soft_wrap=True)
        raise typer.Exit(FAILED)


def _print_shipped(shipped: ShipReport | None) -> None:
    if shipped is None:
        return
    if shipped.link:
        out.print(f"MLflow  {shipped.link}", soft_wrap=True)
    for error in shipped.errors:
        err.print(f"[yellow]MLflow is behind:[/] {escape(error)}; `simlap sync` completes it", soft_wrap=True)


def _print_epoch(row) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - imported late
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


def _this_command() -> str:
    return shlex.join(["simlap", *sys.argv[1:]])


class _quiet_stderr:  # noqa: N801 - used as a function
    """Ray's C++ side writes to file descriptor 2 whatever its loggers are told; that goes to a file, our own words do not."""

    def __enter__(self) -> None:
        log = Path(os.environ.get("TMPDIR", "/tmp")) / f"simlap-{os.getpid()}.log"  # noqa: S108
        sys.stderr.flush()
        self._saved = os.dup(2)
        self._log = log
        with open(log, "ab") as file:
            os.dup2(file.fileno(), 2)
        err.file = os.fdopen(os.dup(self._saved), "w", buffering=1)

    def __exit__(self, *_: object) -> None:
        os.dup2(self._saved, 2)
        os.close(self._saved)
        err.file = sys.stderr
        if self._log.exists() and self._log.stat().st_size == 0:
            self._log.unlink()


if __name__ == "__main__":
    main()
