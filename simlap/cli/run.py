"""`simlap run`: one experiment, with the stages before it."""

from __future__ import annotations

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
    print_epoch,
    print_gates_page,
    print_metrics,
    print_note,
    print_shipped,
    print_warnings,
    quiet_stderr,
    this_command,
    warn_if_away,
    warn_if_open,
)
from simlap.errors import UserError

if TYPE_CHECKING:
    from simlap.record.view import CellView
    from simlap.run.single import PreparedRun


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
    """Run one experiment through Ray Train and record it. Stages that it starts from run before it, once."""
    from simlap.config import load_experiment
    from simlap.record.mlflow import resolve_tracking_uri
    from simlap.record.view import PREEMPTED as REASON
    from simlap.run.single import execute, prepare, record
    from simlap.storage import Storage

    uri = resolve_tracking_uri(tracking_uri)
    loaded = load_experiment(experiment, [*(overrides or []), *(set_ or [])])
    warn_if_away(uri)
    stages = prepare(loaded, Storage(storage), file=str(experiment), address=address)
    warn_if_open(address)
    if not resume:
        for stage in stages:
            _check_untouched(stage)
    for number, stage in enumerate(stages, start=1):
        last = stage is stages[-1]
        which = f"stage {number} of {len(stages)}, {stage.experiment.name}: " if len(stages) > 1 else ""
        kept = not last and stage.view.state == "done"
        out.print(f"{which}{_headline(stage, kept=kept)}", soft_wrap=True, markup=False)
        if told := _other_code(stage):
            out.print(told, style="yellow", soft_wrap=True, markup=False)
        with quiet_stderr():
            view = stage.view
            if not kept:
                view = execute(stage, file=str(experiment), address=address, on_epoch=print_epoch, tell=print_note)
            shipped = record(stage, uri)
        preempted = view.state == "interrupted" and view.reason == REASON
        print_warnings(text for text in view.warnings if text not in stage.view.warnings)
        if view.state == "failed":
            complain(f"[bold red]failed:[/] {escape(view.reason or '')}\n{escape(view.error or '')}")
            if view.error is None:  # not the run's own fault
                complain(f"continue with: [bold]{escape(this_command())}[/]")
        elif view.state == "interrupted":
            stopped = "preempted and saved" if preempted else "stopped"
            complain(f"{stopped} after epoch {view.epoch}; continue with: [bold]{escape(this_command())}[/]")
        elif not kept:
            print_metrics(_results(view))
            _print_gates(stage)
            _print_collapse(stage, view)
        if not kept:
            out.print(f"run directory  {stage.where}", soft_wrap=True, markup=False)
        print_shipped(shipped, uri, stage.experiment.name)
        if view.state != "done":
            raise typer.Exit(PREEMPTED if preempted else INTERRUPTED if view.state == "interrupted" else FAILED)
    raise typer.Exit(OK)


def _check_untouched(stage: PreparedRun) -> None:
    view, epochs = stage.view, stage.experiment.train.epochs
    if view.epoch and view.state != "done":
        raise UserError(
            f"{stage.where}: this run was {view.state} after epoch {view.epoch} of {epochs}; add --resume to continue it"
        )


def _headline(stage: PreparedRun, *, kept: bool) -> str:
    if kept:
        return f"run {stage.view.cell_id} is done, in {stage.where}"
    epochs, workers = stage.experiment.train.epochs, stage.experiment.resources.workers
    return f"run {stage.view.cell_id}: {epochs} epochs, {workers} worker(s), in {stage.where}"


def _other_code(stage: PreparedRun) -> str | None:
    """That a run is about to go on under other code than it began with, in words. None where it does not."""
    codes = dict.fromkeys([*stage.view.codes, stage.task.provenance["code"]])
    if stage.view.state == "done" or len(codes) == 1:
        return None
    return f"begun under other code (hash {' → '.join(codes)}): its numbers will be of both"


def _results(view: CellView) -> dict[str, float]:
    """What was measured at the end: on the test set, and of the gates."""
    last = view.rows[-1].metrics if view.rows else {}
    return {**{name: value for name, value in last.items() if name.startswith("gates/")}, **view.result}


def _print_gates(stage: PreparedRun) -> None:
    """The page of the final evaluation of the gates, where there was one."""
    from simlap.config import evaluation_id
    from simlap.record.journal import cell_storage, read_result, read_track

    cell = cell_storage(stage.storage, stage.task.cell_id)
    result = read_result(cell)
    for evaluation in stage.experiment.evaluate:
        if evaluation.kind == "gates" and result is not None:
            identity = evaluation_id(evaluation, result["checkpoint"]["sha256"])
            artefact = cell.read_json(f"evaluations/{identity}.json")
            rows, _ = read_track(stage.storage, stage.task.cell_id)
            print_gates_page(artefact, cell.child("evaluations"), stage.experiment.name, rows)


def _print_collapse(stage: PreparedRun, view: CellView) -> None:
    """The page of collapse over training, where it was measured on the way."""
    from simlap.record.journal import cell_storage
    from simlap.report.collapse import write_collapse_page

    if sum(view.metric_at("collapse/effective_rank", row.epoch) is not None for row in view.rows) > 1:
        folder = cell_storage(stage.storage, stage.task.cell_id).child("evaluations")
        page, *_ = write_collapse_page({stage.experiment.name: view}, folder, stage.experiment.name)
        out.print(f"collapse       {folder.describe(page)}", soft_wrap=True, markup=False)
