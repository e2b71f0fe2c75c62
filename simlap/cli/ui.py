"""`simlap ui`: MLflow's page, open on a study."""

from __future__ import annotations

import os
import signal
import sys
import webbrowser
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from simlap.cli.app import OK, StorageOption, TrackingOption, app
from simlap.cli.output import out
from simlap.errors import UserError

if TYPE_CHECKING:
    from simlap.record.tracking.guard import Guard


@app.command()
def ui(
    name: Annotated[str | None, typer.Argument(help="Study name or file (default: the only one there is).")] = None,
    storage: StorageOption = "./runs",
    tracking_uri: TrackingOption = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Of the page (default: any that is free).")
    ] = None,
    host: Annotated[
        str,
        typer.Option("--host", help="Interface to listen on (0.0.0.0: all); others than this machine need a password."),
    ] = "127.0.0.1",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
) -> None:
    """Open MLflow's page on a study. Serves the records on this machine until Ctrl-C; a server that runs is only linked to."""
    from simlap.record.mlflow import resolve_tracking_uri
    from simlap.record.tracking.server import AwayError, OwnServer, experiments
    from simlap.record.tracking.uri import sqlite_path

    uri = resolve_tracking_uri(tracking_uri)
    study = _study_name(name)
    if uri.startswith("http"):
        try:
            found = experiments(uri)
        except AwayError as error:
            raise UserError(f"{error}; is the server running?", key="--tracking-uri") from error
        _show(uri, _chosen(study, found, storage, uri), no_browser=no_browser)
        raise typer.Exit(OK)
    if sqlite_path(uri) is not None:  # known before a server has started
        _chosen(study, experiments(uri), storage, uri)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # a shell starts what runs in the background with it ignored
    server = OwnServer(uri, port, host)
    try:
        out.print("MLflow starts ...", markup=False)
        with server:
            if server.guard is not None:
                _show_access(server.guard)
            _show(server.url, _chosen(study, experiments(server.url), storage, uri), no_browser=no_browser)
            out.print("Ctrl-C ends it", markup=False)
            sys.stdout.flush()
            server.wait()
    except KeyboardInterrupt:
        raise typer.Exit(OK) from None


def _show_access(guard: Guard) -> None:
    """How others get in. A password that was made is printed where a person reads it, not into a log."""
    out.print(f"user           {guard.user}", soft_wrap=True, markup=False)
    if not guard.is_made:
        shown = "that of MLFLOW_TRACKING_PASSWORD"
    else:
        shown = guard.password_file.read_text() if sys.stdout.isatty() else f"in {guard.password_file}"
    out.print(f"password       {shown}", soft_wrap=True, markup=False)


def _study_name(name: str | None) -> str | None:
    from simlap.study.spec import load_study

    return load_study(Path(name)).name if name and Path(name).suffix in (".yaml", ".yml") else name


def _chosen(study: str | None, found: dict[str, str], storage: str, uri: str) -> str | None:
    """Id of the experiment that is to be shown; None for the list of all. Raises UserError for a study that has no records."""
    from simlap.record.tracking.uri import without_credentials
    from simlap.storage import Storage

    studies = Storage(storage).list("studies")
    if study is None:
        ours = [name for name in found if name in studies] or [name for name in found if name != "Default"]
        return found[ours[0]] if len(ours) == 1 else None
    if study in found:
        return found[study]
    if study in studies:
        raise UserError(
            f"study {study!r} has no records in {without_credentials(uri)}; `simlap sync {study}` makes them"
        )
    known = sorted({*studies, *found} - {"Default"})
    raise UserError("no such study", file=without_credentials(uri), value=study, choices=known)


def _show(server: str, experiment: str | None, *, no_browser: bool) -> None:
    from simlap.record.tracking.uri import study_pages

    pages = study_pages(server, experiment) if experiment else {"experiments": f"{server}/#/experiments"}
    for what, link in pages.items():
        out.print(f"{what:<14} {link}", soft_wrap=True, markup=False)
    sys.stdout.flush()
    display = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if display and not no_browser:
        webbrowser.open(next(iter(pages.values())))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
