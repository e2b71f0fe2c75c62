"""Studies: `simlap plan`, `ablate`, `status`, `report`, `sync`."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from simlap.cli.app import (
    FAILED,
    INTERRUPTED,
    OK,
    PREEMPTED,
    AddressOption,
    SetOption,
    StorageOption,
    TrackingOption,
    app,
)
from simlap.cli.output import (
    complain,
    out,
    print_shipped,
    print_warnings,
    quiet_stderr,
    this_command,
    warn_if_away,
    warn_if_open,
)
from simlap.errors import UserError

if TYPE_CHECKING:
    from simlap.record.view import StudyView
    from simlap.study.apply import Outcome
    from simlap.study.options import Options


BUDGET = 3
"""Exit code: the study's budget is used up, and there is more to be done."""
TAKEN_OVER = 4
"""Exit code: another launch has taken the study over, and goes on with it."""


class Retry(enum.StrEnum):
    """What `--retry` runs again."""

    failed = "failed"


class Rerun(enum.StrEnum):
    """What `--rerun` discards and runs anew."""

    stale = "stale"


OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only", help="Only arms with this level: factor=level, * matches any text. Several: all must match."
    ),
]
RetryOption = Annotated[
    Retry | None,
    typer.Option("--retry", help="Run failed cells again: from where they failed, or anew if the code has changed."),
]
RerunOption = Annotated[
    Rerun | None, typer.Option("--rerun", help="Discard what other code computed, and run it anew.")
]
SeedsOption = Annotated[
    int | None, typer.Option("--seeds", min=1, help="At least so many seeds; those of the file are kept.")
]


class Format(enum.StrEnum):
    """Formats of `simlap report`."""

    html = "html"
    md = "md"
    latex = "latex"
    csv = "csv"
    parquet = "parquet"


class Images(enum.StrEnum):
    """Formats of the figures of `simlap report --format md`."""

    png = "png"
    svg = "svg"
    pdf = "pdf"


@app.command()
def plan(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    storage: StorageOption = "./runs",
    address: AddressOption = None,
    set_: SetOption = None,
    only: OnlyOption = None,
    retry: RetryOption = None,
    rerun: RerunOption = None,
    seeds: SeedsOption = None,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Run a few steps of what never ran, on this machine, to tell how long it takes."),
    ] = False,
) -> None:
    """Show what `ablate` would do; start nothing."""
    from simlap.cli.plan import print_plan, probe_shapes
    from simlap.run.cluster import connect
    from simlap.storage import Storage
    from simlap.study.placement import check_resources, this_machine
    from simlap.study.plan import make_plan
    from simlap.study.spec import load_study

    loaded = load_study(study, tuple(set_ or []))
    made = make_plan(loaded, Storage(storage), _options(only, retry, rerun, seeds))
    check_resources(loaded, connect(address) if address else [this_machine(loaded)])
    if probe:
        probe_shapes(made)
    print_plan(made, only=bool(only))


@app.command()
def ablate(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    storage: StorageOption = "./runs",
    address: AddressOption = None,
    tracking_uri: TrackingOption = None,
    set_: SetOption = None,
    only: OnlyOption = None,
    retry: RetryOption = None,
    rerun: RerunOption = None,
    seeds: SeedsOption = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Check everything, then run in the background; it outlives the terminal.")
    ] = False,
) -> None:
    """Run what is missing, resume what was interrupted, keep what is done; then report."""
    from simlap.record.mlflow import resolve_tracking_uri
    from simlap.storage import Storage
    from simlap.study.apply import apply, check
    from simlap.study.lease import LostLeaseError
    from simlap.study.spec import load_study

    uri = resolve_tracking_uri(tracking_uri)
    loaded = load_study(study, tuple(set_ or []))
    warn_if_away(uri)
    warn_if_open(address)
    if detach:
        from simlap.cli.detach import detach as run_detached

        check(loaded, Storage(storage), address=address, options=_options(only, retry, rerun, seeds))
        run_detached([word for word in sys.argv[1:] if word != "--detach"], Storage(storage), loaded.name)
    try:
        with quiet_stderr():
            outcome = apply(
                loaded,
                Storage(storage),
                address=address,
                tracking_uri=uri,
                console=out,
                options=_options(only, retry, rerun, seeds),
            )
    except LostLeaseError as error:
        complain(f"[bold]taken over:[/] {escape(str(error))}")
        raise typer.Exit(TAKEN_OVER) from None
    _print_outcome(outcome, uri)


@app.command()
def status(
    name: Annotated[str, typer.Argument(help="Study name or file.")],
    storage: StorageOption = "./runs",
    watch: Annotated[bool, typer.Option("--watch", help="Redraw until the launch has ended.")] = False,
) -> None:
    """Show how far a study is, and what it says so far."""
    if watch:
        from simlap.storage import Storage
        from simlap.study.follow import watch as follow

        follow(Storage(storage), _study_name(name), out)
        return
    from simlap.report import print_report

    print_report(_study(name, storage), out)


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="Study name or file.")],
    format: Annotated[Format, typer.Option("--format", help="Format.")] = Format.html,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write there instead of to the standard output.")
    ] = None,
    figures: Annotated[
        Images | None,
        typer.Option(
            "--figures",
            help="Write the figures as images: beside the file with --format md and --output, which links them; "
            "alone into the study's folder, from where `simlap sync` takes them to MLflow.",
        ),
    ] = None,
    storage: StorageOption = "./runs",
) -> None:
    """Write the report of a study."""
    from simlap.report import build, content

    if figures is not None and (format, output) == (Format.html, None):
        _store_figures(name, storage, figures)
        return
    if figures is not None and (format is not Format.md or output is None):
        raise UserError(
            "needs --format md and --output, or neither: the page has its figures, LaTeX none", key="--figures"
        )
    if format is Format.parquet and output is None and sys.stdout.isatty():
        raise UserError("is not text: name a file with --output", key="--format", value=format.value)
    made = build(_study(name, storage))
    data = content(made, format.value)
    if figures is not None and output is not None:
        from simlap.report.figure_files import with_figures, write_figures
        from simlap.report.html import figures_of

        files = write_figures(figures_of(made), output.with_name(f"{output.stem}_figures"), figures.value)
        data = with_figures(data.decode(), files, output.parent).encode()
    if output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    else:
        try:
            output.write_bytes(data)
        except OSError as error:
            raise UserError(f"cannot be written: {error}", file=str(output), key="--output") from error
        out.print(str(output.absolute()), soft_wrap=True)


def _store_figures(name: str, storage: str, figures: Images) -> None:
    from simlap.report import build
    from simlap.report.build import FIGURES
    from simlap.report.figure_files import store_figures
    from simlap.report.html import figures_of
    from simlap.storage import Storage

    store, view = Storage(storage), _study(name, storage)
    for path in store_figures(figures_of(build(view)), store, f"studies/{view.name}/report/{FIGURES}", figures.value):
        out.print(store.describe(path), soft_wrap=True, markup=False)


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
    warn_if_away(uri)
    with quiet_stderr():
        if store.exists(f"cells/{name}/config.yaml"):
            run = reopen(store, name)
            records, shipped = run.experiment.name, record(run, uri)
        else:
            records = _study(name, storage).name
            shipped = ship_once(store, records, uri)
    print_shipped(shipped, uri, records)
    raise typer.Exit(FAILED if shipped.errors else OK)


def _study_name(name: str) -> str:
    """The study's name, where its file was given."""
    from simlap.study.spec import load_study

    return load_study(name).name if Path(name).suffix in (".yaml", ".yml") else name


def _study(name: str, storage: str) -> StudyView:
    from simlap.record.journal import read_study
    from simlap.storage import Storage

    return read_study(Storage(storage), _study_name(name))


def _options(only: list[str] | None, retry: Retry | None, rerun: Rerun | None, seeds: int | None) -> Options:
    from simlap.study.options import Options

    return Options(tuple(only or ()), retry_failed=retry is not None, rerun_stale=rerun is not None, seeds=seeds)


def _print_outcome(outcome: Outcome, uri: str) -> None:
    from simlap.report import print_report

    if outcome.ran == 0 and not outcome.budget:
        over = outcome.view.race is not None and outcome.view.race.over
        ended = " or failed" * bool(outcome.failed) + " or left alone" * bool(outcome.left)
        out.print("nothing to run: " + ("the race is decided" if over else f"every cell is done{ended}"))
    print_report(outcome.report, out)
    print_warnings(text for arm in outcome.view.arms for cell in arm.cells for text in cell.warnings)
    if outcome.left:
        out.print(outcome.left, style="yellow", markup=False, highlight=False, soft_wrap=True)
    for path in outcome.files:
        if path.endswith(".html"):
            out.print(f"report         {path}", soft_wrap=True, markup=False)
    print_shipped(outcome.shipped, uri, outcome.view.name, study=True)
    if outcome.budget:
        complain(
            f"[bold]budget reached:[/] {escape(outcome.budget)}; raise `budget` in the study file and run the same command"
        )
        raise typer.Exit(BUDGET)
    if not outcome.finished and outcome.preempted:
        complain(f"preempted and saved; continue with: [bold]{escape(this_command())}[/]")
        raise typer.Exit(PREEMPTED)
    if not outcome.finished:
        complain(f"interrupted; continue with: [bold]{escape(this_command())}[/]")
        raise typer.Exit(INTERRUPTED)
    if outcome.failed:
        complain(f"[bold red]{len(outcome.failed)} failed cells[/]; add --retry failed to run them again")
    if outcome.failed or outcome.left:
        raise typer.Exit(FAILED)
