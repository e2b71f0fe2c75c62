"""A table of texts, laid out once and rendered for the terminal, Markdown and HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

from rich.box import SIMPLE_HEAD
from rich.markup import escape as rich_escape
from rich.table import Table

from simlap.report.page import section, tall


@dataclass(frozen=True)
class TextTable:
    """The first column names what a row is about, the others hold numbers."""

    title: str
    head: list[str]
    rows: list[list[str]]
    caption: str

    def rich(self, *, caption: bool = True) -> Table:
        """For the terminal."""
        table = Table(
            box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title=self.title, title_justify="left",
            title_style="bold", caption=rich_escape(self.caption) if caption else None, caption_justify="left",
            caption_style="dim",
        )  # fmt: skip
        for i, head in enumerate(self.head):
            table.add_column(rich_escape(head), overflow="fold", justify="left" if i == 0 else "right")
        for row in self.rows:
            table.add_row(*map(rich_escape, row))
        return table

    def markdown(self) -> list[str]:
        """A section, in lines."""
        lines = ["| " + " | ".join(map(_markdown, row)) + " |" for row in (self.head, *self.rows)]
        lines.insert(1, "|:--|" + "--:|" * (len(self.head) - 1))
        return [f"## {self.title}", "", *lines, "", f"*{self.caption}*", ""]

    def html(self) -> str:
        """A section."""
        head = "".join(f'<th scope="col"{_num(i)}>{escape(text)}</th>' for i, text in enumerate(self.head))
        body = "".join(
            '<tr><th scope="row" class="arm">'
            + escape(row[0])
            + "</th>"
            + "".join(
                f'<td class="num" data-label="{escape(name)}"{" data-empty" * (not text)}><span>{_shown(text)}</span></td>'
                for name, text in zip(self.head[1:], row[1:], strict=True)
            )
            + "</tr>"
            for row in self.rows
        )
        table = f'<table class="arms"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        return section(self.title, self.caption, tall(table, len(self.rows), self.title))


def filled(title: str, head: list[str], rows: list[list[str]], caption: str) -> TextTable | None:
    """The table without columns that are empty in every row; None where no row has anything."""
    kept = [0] + [i for i in range(1, len(head)) if any(row[i] for row in rows)]
    if len(kept) == 1:
        return None
    return TextTable(title, [head[i] for i in kept], [[row[i] for i in kept] for row in rows if any(row[1:])], caption)


def _shown(text: str) -> str:
    """A cell's content: real minus signs, and a dash where there is nothing."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", escape(text)) or '<span class="none">–</span>'


def _num(column: int) -> str:
    return ' class="num"' if column else ""


def _markdown(text: str) -> str:
    return text.replace("|", "\\|") or "–"
