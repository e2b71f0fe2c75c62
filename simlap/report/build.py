"""From a study's view to the report, in memory and on storage."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from simlap.record.view import StudyView
from simlap.report.answer import Notice, Sentence, notices, race_sentences, sentences
from simlap.report.claims import Judged, judge
from simlap.report.compare import Comparison, Effect, compare_to_baseline, simple_effects
from simlap.report.detail import Details, details
from simlap.report.detail_tables import detail_tables, summary_details
from simlap.report.estimates import as_csv, as_parquet, epochs, estimates
from simlap.report.html import html_page
from simlap.report.latex import latex
from simlap.report.markdown import markdown
from simlap.report.race import race_comparisons, race_rows, race_summary
from simlap.report.replayed import badge_text
from simlap.report.tables import ArmRow, arm_rows, markdown_table, summary
from simlap.report.text_table import TextTable
from simlap.report.tuned import summary_tuned, tuned_table
from simlap.storage import Storage

Text = Literal["html", "md", "latex", "csv"]
Format = Literal["html", "md", "latex", "csv", "parquet"]
FIGURES = "figures"
_ENDINGS: dict[Format, str] = {"html": "html", "md": "md", "latex": "tex", "csv": "csv", "parquet": "parquet"}


@dataclass(frozen=True)
class Report:
    """Everything that is said about a study, computed once; the renderings only lay it out."""

    study: StudyView
    rows: list[ArmRow]
    comparisons: dict[str, Comparison]
    """Every other arm with the baseline, by arm name."""
    effects: list[Effect]
    sentences: list[Sentence]
    notices: list[Notice]
    details: Details | None
    """What stands beside the tests; None for a race."""
    judged: list[Judged]
    """The study's claims."""

    @property
    def tables(self) -> list[TextTable]:
        """Beside the table of arms."""
        found = [tuned_table(self.study)] if self.study.searches else []
        own = detail_tables(self.study, self.details) if self.details is not None else []
        return [table for table in found if table is not None] + own


def built(study: StudyView | Report) -> Report:
    """The report of a study, where it is none yet."""
    return study if isinstance(study, Report) else build(study)


def build(study: StudyView) -> Report:
    """Compute everything that is said about a study."""
    if (race := study.race) is not None:
        comparisons = race_comparisons(study, race)
        rows = race_rows(study, race, arm_rows(study, comparisons))
        return Report(
            study, rows, comparisons, [], race_sentences(study, race), notices(study), None, judge(study)
        )  # fmt: skip
    comparisons, effects = compare_to_baseline(study), simple_effects(study)
    return Report(
        study, arm_rows(study, comparisons), comparisons, effects, sentences(study, effects),
        notices(study, comparisons), details(study, comparisons), judge(study),
    )  # fmt: skip


def render(study: StudyView | Report, format: Text) -> str:
    """The report as text in one format."""
    report = built(study)
    if format == "html":
        return html_page(report)
    if format == "latex":
        return latex(report)
    return as_csv(estimates(report)) if format == "csv" else markdown(report)


def content(study: StudyView | Report, format: Format) -> bytes:
    """The report as a file's content: texts in UTF-8, and as Parquet what it is as CSV."""
    report = built(study)
    if format == "parquet":
        return as_parquet(estimates(report), report.study)
    return render(report, format).encode()


def write_report(study: StudyView | Report, storage: Storage, folder: str = "report") -> list[str]:
    """Write it in every format, with `epochs.parquet` and `summary.json`, to a folder of a storage; returns their paths there.

    Images of an earlier report's figures (`figures/`) go: they show what was then.
    """
    report = built(study)
    files = {f"report.{ending}": content(report, name) for name, ending in _ENDINGS.items()}
    files["epochs.parquet"] = as_parquet(epochs(report.study), report.study)
    files["summary.json"] = (
        json.dumps(summary_of(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    ).encode()
    if folder:
        storage.delete(f"{folder}/{FIGURES}")
    paths = []
    for file, data in files.items():
        path = f"{folder}/{file}" if folder else file
        storage.write(path, data)
        paths.append(path)
    return paths


def summary_of(report: Report) -> dict[str, Any]:
    """What `summary.json` holds."""
    found = summary(report.study, report.rows, markdown_table(report.study, report.rows))
    if report.study.race is not None:
        found["race"] = race_summary(report.study.race)
    if tuned := summary_tuned(report.study):
        found["tuned"] = tuned
    if report.details is not None:
        found["details"] = summary_details(report.study, report.details)
    if report.judged:
        found["claims"] = [vars(one) for one in report.judged]
    if (replay := report.study.replay) is not None:
        found["replay"] = {**asdict(replay), "text": badge_text(replay)}
    return found
