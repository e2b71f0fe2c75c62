"""What is printed, and where: results to the standard output, errors and remedies to the standard error."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from simlap.redact import hide_credentials

if TYPE_CHECKING:
    from simlap.record.ship import ShipReport
    from simlap.record.view import EpochRow
    from simlap.storage import Storage

out = Console(highlight=False)
_WARNINGS = 10
"""So many warnings of runs are shown."""
_errors: list[TextIO] = []
"""Where errors are printed while standard error itself is redirected."""


def complain(text: str) -> None:
    """Print to the standard error, without secrets."""
    where = _errors[-1] if _errors else sys.stderr
    Console(file=where, highlight=False).print(hide_credentials(text), soft_wrap=True)


def this_command() -> str:
    words = [hide_credentials(word) for word in sys.argv[1:]]
    return shlex.join(["simlap", *words, *(["--resume"] if words[:1] == ["run"] and "--resume" not in words else [])])


def plain_table(*columns: str, numbers: int = 0) -> Table:
    """A table without lines, and without a header where no column has a name. `numbers`: so many last columns hold numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for place, column in enumerate(columns):
        number = place >= len(columns) - numbers
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def metric_text(name: str, value: float) -> str:
    """A metric's value: four decimals of an accuracy, four significant digits of anything else."""
    return f"{value:.4f}" if "top1" in name else f"{value:.4g}"


def print_metrics(metrics: Mapping[str, float]) -> None:
    table = plain_table("", "", numbers=1)
    for name, value in sorted(metrics.items()):
        table.add_row(escape(name), metric_text(name, value))
    out.print(table)


def print_epoch(row: EpochRow) -> None:
    """Loss, accuracies on the selection split, rank and time, as far as they were measured."""
    accuracies = [name for name in row.metrics if name.endswith("_top1") and not name.startswith("train/")]
    shown = ("train/loss", *accuracies, "collapse/effective_rank", "time/epoch_s")
    values = "  ".join(f"{name} {row.metrics[name]:.4g}" for name in shown if name in row.metrics)
    out.print(f"epoch {row.epoch:>4}  {values}", soft_wrap=True)


def print_note(text: str) -> None:
    """What happens to a run that goes on."""
    out.print(text, style="yellow", soft_wrap=True, markup=False)


def print_warnings(texts: Iterable[str]) -> None:
    """What runs noticed and did not stop for, each thing once."""
    told = list(dict.fromkeys(texts))
    for text in told[:_WARNINGS]:
        complain(f"[yellow]noticed:[/] {escape(text)}")
    if len(told) > _WARNINGS:
        complain(f"[yellow]noticed:[/] and {len(told) - _WARNINGS} more like these")


def print_gates_page(artefact: Mapping[str, Any], folder: Storage, title: str, rows: Sequence[EpochRow] = ()) -> None:
    """Write the page of an analysis of the gates, with the run's epochs, and say where it is."""
    from simlap.report.gates import write_gates_page

    page, *_ = write_gates_page(artefact, folder, title, training={title: rows} if rows else None)
    out.print(f"gates          {folder.describe(page)}", soft_wrap=True, markup=False)


def warn_if_away(uri: str) -> None:
    """Say that the tracking server does not answer: that keeps nothing from running. Raises UserError where it refuses us."""
    from simlap.record.tracking.server import check_server

    if away := check_server(uri):
        complain(
            f"[yellow]MLflow is away:[/] {escape(away)}; nothing waits for it: the records are sent once it is back, "
            "or with `simlap sync`"
        )


def warn_if_open(address: str | None) -> None:
    """Say that a Ray cluster takes orders from anybody who reaches it over the network."""
    from simlap.run.access import open_cluster

    if address and (told := open_cluster(address)):
        complain(f"[yellow]open cluster:[/] {escape(told)}")


def print_shipped(shipped: ShipReport | None, uri: str, name: str, *, study: bool = False) -> None:
    """Where the records are; `name` is their experiment's."""
    from simlap.record.tracking.uri import run_link, study_link

    if shipped is None:
        return
    if found := shipped.experiment_id:
        link = study_link(uri, name, found) if study else run_link(uri, name, found, shipped.run_id)
        out.print(f"MLflow         {link}", soft_wrap=True, markup=False)
    for error in shipped.errors:
        complain(f"[yellow]MLflow is behind:[/] {escape(error)}; `simlap sync` completes it")


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Ray's C++ side writes to file descriptor 2 whatever its loggers are told. That goes to a file; our own words do not."""
    from simlap.run import head

    head.tell = lambda text: complain(escape(text))
    sys.stderr.flush()
    terminal = os.dup(2)
    with (
        tempfile.NamedTemporaryFile(prefix="simlap-", suffix=".log", delete=False) as log,
        os.fdopen(terminal, "w") as real,
    ):
        os.dup2(log.fileno(), 2)
        _errors.append(real)
        try:
            yield
        finally:
            _errors.pop()
            os.dup2(terminal, 2)
    if Path(log.name).stat().st_size == 0:
        Path(log.name).unlink()
