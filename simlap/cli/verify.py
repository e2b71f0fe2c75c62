"""`simlap verify`: whether a run of a study comes out again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simlap.cli.app import FAILED, OK, StorageOption, app
from simlap.cli.output import out

if TYPE_CHECKING:
    from simlap.study.verify import Candidate

_SHOWN = 5


@app.command()
def verify(
    study: Annotated[str, typer.Argument(help="Study name or file.")],
    cell: Annotated[str | None, typer.Option("--cell", help="Id of the run (default: a random finished one).")] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="So many (default: up to the scheduler's first rung, else two)."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the random choice (default: a random one).")] = None,
    storage: StorageOption = "./runs",
) -> None:
    """Train a finished run of a study anew, up to a rung, and compare every recorded number."""
    from simlap.record.journal import read_study
    from simlap.report import write_report
    from simlap.report.replayed import OTHER_CODE, difference_text
    from simlap.storage import Storage
    from simlap.study.verify import verify as replay_one

    store = Storage(storage)
    name = study
    if Path(study).suffix in (".yaml", ".yml"):
        from simlap.study.spec import load_study

        name = load_study(study).name
    replay = replay_one(store, name, cell_id=cell, epochs=epochs, draw=seed, on_start=_announce)
    for text in replay.skipped:
        _say(f"passed over: {text}", "yellow")
    if replay.draw is not None:
        _say(f"drawn with --seed {replay.draw}")
    _say(f"compared {replay.values} values {'bit for bit' if replay.exact else f'within {replay.tolerance}'}")
    for text in replay.unlike:
        _say(f"other than for the record: {text}", "yellow")
    if not replay.same_code:
        _say(OTHER_CODE, "yellow")
    for one in replay.differences[:_SHOWN]:
        _say(difference_text(one))
    equal = replay.verdict == "equal"
    verdict = "equal: all came out again" if equal else f"different: {replay.different} of {replay.values} values"
    _say(verdict, "green" if equal else "bold red")
    folder = store.child("studies", name)
    for path in write_report(read_study(store, name), folder):
        if path.endswith(".html"):
            _say(f"report         {folder.describe(path)}")
    raise typer.Exit(OK if equal else FAILED)


def _announce(candidate: Candidate, epochs: int) -> None:
    view = candidate.view
    _say(f"{candidate.line}, seed {view.seed} ({view.cell_id}): epochs 1 to {epochs} of {view.epoch}")


def _say(text: str, style: str = "") -> None:
    out.print(text, style=style, markup=False, soft_wrap=True)
