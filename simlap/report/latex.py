"""The report as LaTeX: the answer as a list, every table with booktabs, each ready to be pasted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from simlap.record.view import StudyView
from simlap.report.replayed import badge_text
from simlap.report.tables import ArmRow, caption, cells_of, headers

if TYPE_CHECKING:
    from simlap.report.build import Report

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "–": "--", "−": "$-$", "×": r"$\times$", "≤": r"$\le$", "≥": r"$\ge$", "ρ": r"$\rho$", "α": r"$\alpha$",
    "χ": r"$\chi$", "η": r"$\eta$", "δ": r"$\delta$", "→": r"$\to$", "·": r"$\cdot$",
    "²": "$^2$", "\u00a0": "~", "…": r"\dots{}", "|": r"\textbar{}", "\n": " ",
}  # fmt: skip
_TEXTS = ("Status", "Verdict", "Compared at")
"""Columns that are no numbers."""
_SIZES = ((74, r"\small"), (84, r"\footnotesize"), (10_000, r"\scriptsize"))
"""How many characters of a size fit a line of LaTeX's article class."""


def latex(report: Report) -> str:
    """The whole report: `\\input` it as it is, or take its tables one by one."""
    study = report.study
    parts = [
        f"% Study {_comment(study.name)}. Needs \\usepackage{{booktabs}}.",
        *([f"% {_comment(study.command)}"] if study.command else []),
        *([f"% {_comment(badge_text(study.replay))}"] if study.replay is not None else []),
    ]
    items = [sentence.text for sentence in report.sentences]
    items += [f"Claim {one.claim}: {one.verdict}: {one.text}" for one in report.judged]
    if items:
        parts += [r"\begin{itemize}\sloppy", *(rf"  \item {latex_escape(text)}" for text in items), r"\end{itemize}"]
    parts.append(arms_table(study, report.rows))
    for table in report.tables:
        label = f"{study.name}-{table.title.lower()}"
        texts = tuple(table.head[:1])
        parts.append(_table(table.head, table.rows, texts, f"{table.title}. {table.caption}", label))
    return "\n".join([*parts, ""])


def arms_table(study: StudyView, rows: Sequence[ArmRow]) -> str:
    """The arms by their levels. A column that says the same of all of them is told in the caption."""
    levels = {arm.name: arm.levels for arm in study.arms}
    factors = list(study.factors)
    head = factors + headers(study)[1:]
    body = [[*(levels[row.arm].get(name, "") for name in factors), *cells_of(row)[1:]] for row in rows]
    same: list[str] = []
    for name in ("Seeds", *_TEXTS):
        if name in head[len(factors) :]:  # a factor may have the same name
            column = head.index(name, len(factors))
            found = {cells[column] for cells in body if cells[column]}
            if len(found) <= 1:
                same += [f"{name}: {text}." for text in found]
                head, body = _without(head, column), [_without(cells, column) for cells in body]
    return _table(head, body, (*factors, *_TEXTS), " ".join([caption(study), *same]), study.name)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: Sequence[str], about: str, label: str) -> str:
    """Heads stand on two lines, and texts on several where a line would be too long."""
    heads = [_halves(text) for text in head]
    cells = [[[cell] for cell in row] for row in rows]
    if _width(heads, cells) > _SIZES[0][0]:
        breaks = [name in texts for name in head]
        cells = [[_parts(cell) if may else [cell] for cell, may in zip(row, breaks, strict=True)] for row in rows]
    size = next(size for most, size in _SIZES if _width(heads, cells) <= most)
    columns = "".join("l" if name in texts else "r" for name in head)
    body = [
        " & ".join(_stacked(cell, column) for cell, column in zip(row, columns, strict=True)) + r" \\" for row in cells
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            size,
            r"\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{latex_escape(about)}}}",
            rf"\label{{tab:{re.sub(r'[^A-Za-z0-9:]+', '-', label)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(_stacked(text, column) for text, column in zip(heads, columns, strict=True)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _stacked(lines: Sequence[str], column: str) -> str:
    texts = [latex_escape(line) or "--" for line in lines]
    lines_of = r"\\".join(texts)
    return texts[0] if len(texts) == 1 else rf"\shortstack[{column}]{{{lines_of}}}"


def _width(heads: Sequence[Sequence[str]], rows: Sequence[Sequence[Sequence[str]]]) -> int:
    """Characters of the longest line, with room between the columns."""
    columns = zip(heads, *rows, strict=True)
    return sum(2 + max(len(line) for cell in column for line in cell) for column in columns)


def _halves(text: str) -> list[str]:
    """On two lines, as even as its words allow."""
    words = text.split(" ")
    cuts = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
    return list(min(cuts, key=lambda halves: max(map(len, halves)))) if cuts and len(text) > 8 else [text]


def _parts(text: str) -> list[str]:
    """A line for each part of an arm's name, or of what commas separate."""
    return [part.strip() for part in re.sub(r",|(?= @)", r"\g<0>\n", text).split("\n")]


def _without(values: Sequence[str], column: int) -> list[str]:
    return [*values[:column], *values[column + 1 :]]


def latex_escape(text: str) -> str:
    """Plain text as LaTeX text; signed numbers get a minus rather than a hyphen, and names of arms may be broken."""
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r",(?=[^\s\d])", r",\\allowbreak{}", re.sub(r"(?<![\w.$-])-(?=\d)", "$-$", escaped))


def _comment(text: str) -> str:
    return " ".join(text.split())
