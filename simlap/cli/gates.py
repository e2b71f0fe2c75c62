"""`simlap gates`: what the gates of a checkpoint, a run or all arms of a study learnt, as pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simlap.cli.app import StorageOption, app
from simlap.cli.output import out
from simlap.errors import ConfigError, UserError

if TYPE_CHECKING:
    from simlap.storage import Storage


@app.command()
def gates(
    subject: Annotated[
        str, typer.Argument(metavar="NAME", help="A study (name or file), a run directory or its id, or a checkpoint.")
    ],
    pair: Annotated[
        list[str] | None,
        typer.Option("--pair", help="Classes whose gates are shown, cat:dog; several (default: those that stand out)."),
    ] = None,
    arm: Annotated[list[str] | None, typer.Option("--arm", help="Only this arm of the study; several.")] = None,
    output: Annotated[
        str | None,
        typer.Option("--out", help="Folder of the pages (default: `gates` of the study, `evaluations` of the run)."),
    ] = None,
    storage: StorageOption = "./runs",
) -> None:
    """Show what the gates learnt: which pairs open what, how classes relate, and which image features it is."""
    from simlap.run.evaluate import check_writable
    from simlap.storage import Storage

    store = Storage(storage)
    study = _study_name(subject, store)
    folder = Storage(output) if output is not None else None
    if folder is not None:
        check_writable(folder)
    if study is None:
        if arm:
            raise ConfigError("is for studies, and this is a single run", key="--arm", value=", ".join(arm))
        _single(subject, store, folder, pair or [])
        return
    from simlap.record.journal import read_study
    from simlap.report import write_report
    from simlap.study.gate_pages import write_gate_pages

    view = read_study(store, study)
    written = write_gate_pages(
        store,
        view,
        arms=arm or [],
        pairs=pair or [],
        out=folder,
        say=lambda text: out.print(text, markup=False, soft_wrap=True),
    )
    place = folder or store.child("studies", study, "gates")
    out.print(f"gates          {place.describe(written[0])}", soft_wrap=True, markup=False)
    if folder is None:  # the report shows what lies beside it
        report, *_ = write_report(read_study(store, study), store.child("studies", study))
        out.print(f"report         {store.child('studies', study).describe(report)}", soft_wrap=True, markup=False)


def _study_name(name: str, store: Storage) -> str | None:
    """The name of the study that is meant, None where it is none. A run or folder of that name goes before a study."""
    if Path(name).suffix in (".yaml", ".yml"):
        from simlap.study.spec import load_study

        return load_study(name).name
    if "/" in name or store.exists(f"cells/{name}"):
        return None
    return name if store.exists(f"studies/{name}/plan.json") else None


def _single(name: str, store: Storage, folder: Storage | None, pairs: list[str]) -> None:
    from simlap.report.gates import write_gates_page
    from simlap.run.evaluate import check_writable, locate, open_checkpoint
    from simlap.run.gates import GateStudio, check_gates

    try:
        path = locate(name, store)
    except UserError:
        if "/" in name:
            raise
        raise ConfigError(
            f"no study, run directory or checkpoint of this name in {store.describe()}", value=name,
            choices=store.list("studies"),
        ) from None  # fmt: skip
    subject = open_checkpoint(path)
    kept = subject.run.child("evaluations") if subject.run is not None else folder
    if kept is None:
        raise UserError(f"{name}: the checkpoint lies in no run directory; say with --out where the pages go")
    check_gates(subject.experiment)
    try:
        check_writable(kept)
    except UserError:
        if folder is None:
            raise
        kept = folder  # a run that can be read only
    folder = folder or kept
    look = GateStudio(subject, kept).look(pairs)
    title = f"{subject.experiment.name}, epoch {subject.checkpoint.epoch}"
    training = {subject.experiment.name: look.training} if look.training else {}
    page, *_ = write_gates_page(look.artefact, folder, title, training=training, pictures=look.pictures)
    out.print(f"gates          {folder.describe(page)}", soft_wrap=True, markup=False)
