"""The report as LaTeX: its shape, what is escaped, and that it compiles."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from simlap.record.view import StudyView
from simlap.report import render
from simlap.report.latex import latex_escape
from tests.unit.report import factory
from tests.unit.report.test_race import raced

COMPILER = shutil.which("pdflatex")
DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}
\begin{document}
\input{report.tex}
\end{document}
"""


def table(text: str) -> list[str]:
    """Lines of the body of the first table."""
    return text.split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()


def test_shape() -> None:
    text = render(factory.mixed(), "latex")
    tables = text.count("\\begin{table}")
    for command in ("\\toprule", "\\midrule", "\\bottomrule", "\\end{table}"):
        assert text.count(command) == tables >= 1
    body = table(text)
    assert len(body) == 6
    assert all(line.endswith(r"\\") and line.count(" & ") == 7 for line in body)
    assert "val/probe\\_top1" in text
    assert "$-$" in body[-1]
    assert text.isascii()
    assert text.count("\\item") >= 6


def test_a_column_that_says_the_same_everywhere_stands_in_the_caption() -> None:
    text = render(factory.study(), "latex")
    assert all(line.count(" & ") == 4 for line in table(text))
    caption = text.split("\\caption{")[1].split("\n")[0]
    assert "Seeds: 5/5. Status: done. Compared at: test." in caption


def test_a_factor_may_be_named_like_a_column() -> None:
    view = raced()  # its table has a verdict, and no status
    arms = [replace(arm, levels={"Status": arm.levels["filter"], "pairs": arm.levels["pairs"]}) for arm in view.arms]
    named = replace(
        view, arms=arms, factors={"Status": view.factors["filter"], "pairs": view.factors["pairs"]}, claims=[]
    )
    assert "Status & pairs & " in render(named, "latex")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 5% #1 $x$", r"a\_b \& 5\% \#1 \$x\$"),
        ("\\{~^", r"\textbackslash{}\{\textasciitilde{}\textasciicircum{}"),
        ("-7.1 [-8.0, +6.2]", "$-$7.1 [$-$8.0, +6.2]"),
        ("top-1 ± 2–3", r"top-1 $\pm$ 2--3"),
    ],
)
def test_escape(text: str, expected: str) -> None:
    assert latex_escape(text) == expected


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="pdflatex is not installed")
@pytest.mark.parametrize(
    "view", [factory.study(margin=0.01), factory.mixed(), raced(), replace(factory.study(), name="a_b & 50%")]
)
def test_it_compiles(view: StudyView, tmp_path: Path) -> None:
    (tmp_path / "report.tex").write_text(render(view, "latex"))
    (tmp_path / "main.tex").write_text(DOCUMENT)
    assert COMPILER is not None
    done = subprocess.run(
        [COMPILER, "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    tables = [line for line in done.stdout.splitlines() if line.startswith("Overfull") and "paragraph" in line]
    assert tables == []
