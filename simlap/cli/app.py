"""The program: its options, its exit codes, and what becomes of errors."""

from __future__ import annotations

import sys
import traceback
import warnings
from typing import Annotated

import typer
from rich.markup import escape

from simlap.cli.output import complain, this_command
from simlap.errors import UserError
from simlap.redact import hide_credentials
from simlap.storage import StorageError, StorageFullError, expect_an_answer

app = typer.Typer(
    name="simlap",
    help="SimLAP experiments and ablation studies on Ray, recorded in MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

OK, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
PREEMPTED = 75
"""`EX_TEMPFAIL`, "try again later": what schedulers and queues take for it."""

StorageOption = Annotated[
    str, typer.Option("--storage", help="Where runs are kept: a folder or any pyarrow.fs URI (s3://...).")
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="Ray cluster to use (default: Ray on this machine).")
]
TrackingOption = Annotated[
    str | None, typer.Option("--tracking-uri", help="MLflow tracking server (default: MLflow's own sqlite store).")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Change a value of the (base) experiment: a.b=v.")]
RootOption = Annotated[
    str | None, typer.Option("--root", help="Folder that torchvision keeps its datasets in (default: ~/data).")
]


def main() -> None:
    """Entry point. Exit codes: 0 ok, 1 failed cells, claims that do not hold, a run that does not
    come out again, damaged images, or a storage that is full or away, 2 wrong input, 3 budget reached,
    4 study taken over, 75 preempted (SIGTERM: saved), 130 interrupted."""
    warnings.filterwarnings("ignore")
    expect_an_answer()
    try:
        code = app(standalone_mode=False)  # of typer.Exit; None where a command just returns
    except UserError as error:
        complain(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(WRONG_INPUT)
    except (StorageError, StorageFullError) as error:
        complain(f"[bold red]error:[/] {escape(str(error))}; continue with: [bold]{escape(this_command())}[/]")
        sys.exit(FAILED)
    except (typer.Abort, KeyboardInterrupt):
        complain(f"interrupted; continue with: [bold]{escape(this_command())}[/]")
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the program ends here
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # click's usage errors
            complain(f"[bold red]error:[/] {escape(error.format_message())}")
            sys.exit(WRONG_INPUT)
        sys.stderr.write(hide_credentials(traceback.format_exc()))  # as Python would, but for the secrets in it
        sys.exit(FAILED)
    sys.exit(code or OK)
