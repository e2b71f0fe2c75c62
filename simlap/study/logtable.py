"""A study in a log, where nothing can be drawn twice: its table now and then, however large the study is."""

from __future__ import annotations

import math

from rich.console import Console
from rich.text import Text

from simlap.study.live import LiveStudy

WIDTH = 80
LINES = 40
"""Of a table; in one with more arms, those that matter least are told in a line."""
TABLES = 10
"""At most so many while a study runs, and never more lines of tables than cells that ended."""


class LogTable:
    """Prints a study where enough has happened since the last time.

    Args:
        study: to be printed.
        console: that is no terminal.
    """

    def __init__(self, study: LiveStudy, console: Console) -> None:
        self.study, self.console = study, console
        self._printed = 0
        self._told = 0

    def print(self, ended: int) -> None:
        """The table now. What failed is left out: it was told when it happened."""
        self._printed = self._told = ended
        width = min(WIDTH, self.console.width)
        self.console.print(Text(), self.study.render(width, LINES, failures=False), Text(), sep="\n", width=width)

    def totals(self, ended: int) -> None:
        """The totals and the budget."""
        self._told = ended
        for line in self.study.summary():
            self.console.print(Text(line), soft_wrap=True)

    def advance(self, ended: int, of: int, *, totals: bool) -> None:
        """So many cells of so many have ended by now: print the table where it is due.

        Args:
            ended: cells.
            of: cells.
            totals: whether the totals are wanted more often, since nothing else tells of cells that end.
        """
        share = math.ceil(of / TABLES)
        if ended >= of:
            return  # whatever comes at the end is about to come
        # a header, arms and a line of totals, of which there may be more: to ask takes milliseconds where there are many cells
        if ended - self._printed >= max(share, min(len(self.study.arms) + 2, LINES)):
            self.print(ended)
        elif totals and ended - self._told >= share:
            self.totals(ended)
