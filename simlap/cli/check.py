"""`simlap check`: whether what a study file claims holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.padding import Padding

from simlap.cli.app import FAILED, OK, StorageOption, app
from simlap.cli.output import out
from simlap.errors import ConfigError, UserError

if TYPE_CHECKING:
    from simlap.report.claims import Judged

_MARKS = {"holds": "[green]holds[/]", "fails": "[red]fails[/]", "undecided": "[yellow]undecided[/]"}


@app.command()
def check(
    study: Annotated[str, typer.Argument(help="Study name or file.")],
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the verdicts there, as JUnit XML.")] = None,
    storage: StorageOption = "./runs",
) -> None:
    """Say which of a study's claims hold, by what has been run so far; run nothing."""
    from simlap.report.claims import all_hold, counts_text

    name, judged = _judged(study, storage)
    for one in judged:
        out.print(f"{_MARKS[one.verdict]}  {escape(one.claim)}", soft_wrap=True)
        out.print(Padding(escape(one.text), (0, 0, 0, 2)))
    out.print(f"{len(judged)} claims: {counts_text(judged)}" if len(judged) > 1 else f"1 claim: {counts_text(judged)}")
    if junit is not None:
        from simlap.report.junit import junit as written

        try:
            junit.write_text(written(name, judged), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot be written: {error}", file=str(junit), key="--junit") from error
    raise typer.Exit(OK if all_hold(judged) else FAILED)


def _judged(study: str, storage: str) -> tuple[str, list[Judged]]:
    """The study's name, and its claims: those of the file where it is given, else those it was last applied with."""
    from simlap.record.journal import read_study
    from simlap.report.claims import Judged, judge
    from simlap.storage import Storage

    store = Storage(storage)
    claims, name, file = None, study, store.describe(f"studies/{study}")
    by: dict[str, object] = {}
    if Path(study).suffix in (".yaml", ".yml"):
        from simlap.study.spec import load_study

        loaded = load_study(study)
        spec = loaded.spec
        claims, name, file = spec.claims, loaded.name, study
        rule = spec.compare if isinstance(spec.compare, str) else spec.compare.epoch
        by = {"metric": (spec.metric.name, spec.metric.report), "compare": rule, "seeds": spec.seed_list()}
        if claims and not store.exists(f"studies/{name}/plan.json"):
            return name, [Judged(text, "undecided", "the study has not been run yet") for text in claims]
    view = read_study(store, name) if claims != [] else None
    wanted = claims if claims is not None else view.claims if view is not None else []
    if not wanted or view is None:
        raise ConfigError("the study claims nothing: there is nothing to check", file=file, key="claims")
    if new := [text for text in wanted if text not in view.claims]:
        text = f"{len(new)} of the file's claims were not there when the study was last applied"
        out.print(text, style="yellow", markup=False, soft_wrap=True)
    applied = {"metric": (view.metric, view.report_metric), "compare": view.compare, "seeds": view.seeds}
    if other := [key for key, value in by.items() if value != applied[key]]:
        text = f"the file has another {' and '.join(other)} than when the study was last applied, which the verdicts are by"
        out.print(text, style="yellow", markup=False, soft_wrap=True)
    if late := [text.removeprefix("claim ") for text in view.declared_late if text.startswith("claim ")]:
        text = f"claimed when there were results already: {', '.join(late)}"
        out.print(text, style="yellow", markup=False, soft_wrap=True)
    if changed := [text for text in view.declared_late if not text.startswith("claim ")]:
        text = f"changed when there were results already: {'; '.join(changed)}"
        out.print(text, style="yellow", markup=False, soft_wrap=True)
    return name, judge(view, wanted)
