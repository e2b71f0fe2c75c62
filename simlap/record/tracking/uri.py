"""Where MLflow's records are: one absolute address, and the words that lead a reader there."""

from __future__ import annotations

import hashlib
import os
import shlex
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from simlap.errors import UserError
from simlap.record.tracking.views import ARMS, CURVES, TREE
from simlap.redact import hide_credentials


def resolve_tracking_uri(uri: str | None = None) -> str:
    """The tracking URI, made absolute once: the argument, else MLFLOW_TRACKING_URI, else `sqlite:///<cwd>/mlflow.db`.

    MLflow's own default depends on the working directory, and Ray changes that per trial: the driver resolves it.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith(("http://", "https://")):
        return _keep_credentials(uri).rstrip("/")
    if uri.startswith("sqlite:"):
        path, query = _sqlite_parts(uri)
        if not path or path == ":memory:":
            raise UserError(f"tracking URI {uri!r}: names no file; use sqlite:///mlflow.db")
        return f"sqlite:///{Path(path).expanduser().absolute()}{query}"
    if "://" not in uri or uri.startswith("file:"):
        name = uri.removeprefix("file://").removeprefix("file:")
        raise UserError(
            f"tracking URI {uri!r}: MLflow has no plain folder store any more; "
            f"use a database such as sqlite:///{name.rstrip('/')}/mlflow.db, or the URL of a server"
        )
    return uri


def _keep_credentials(uri: str) -> str:
    """A server's address without user and password: those go where MLflow's clients look for them, in this process and those
    that it starts. An address is shown and stored; they must not be."""
    parts = urlsplit(uri)
    if parts.username is not None:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return without_credentials(uri)


def sqlite_path(uri: str) -> Path | None:
    """The file behind a resolved sqlite URI, None for other stores."""
    return Path(_sqlite_parts(uri)[0]) if uri.startswith("sqlite:") else None


def artifact_location(uri: str, experiment: str) -> str | None:
    """Folder for an experiment's artefacts, absolute: `mlruns` beside the sqlite file. None: the server decides."""
    path = sqlite_path(uri)
    if path is None:
        return None if uri.startswith("http") else (Path.cwd() / "mlruns" / _folder(experiment)).as_uri()
    return (path.parent / "mlruns" / _folder(experiment)).as_uri()


def uri_hash(uri: str, *more: str) -> str:
    """Short name of a tracking store, for file names. Credentials in the address do not count."""
    return hashlib.sha256("\0".join((without_credentials(uri), *more)).encode()).hexdigest()[:12]


def without_credentials(uri: str) -> str:
    """The address as it may be shown and stored."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def holds_runs(uri: str, run_ids: Iterable[str]) -> bool:
    """False where a sqlite store evidently lacks one of these runs (file deleted, run deleted in the UI).

    Answered by the sqlite module alone, since importing mlflow takes seconds. Servers are not asked: True.
    """
    path = sqlite_path(uri)
    if path is None:
        return True
    if not path.exists():
        return False
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            rows = connection.execute("select run_uuid from runs where lifecycle_stage = 'active'")
            return set(run_ids) <= {row[0] for row in rows}
        finally:
            connection.close()
    except sqlite3.Error:  # not a database, or not MLflow's: the writer will say what is wrong
        return False


def run_link(tracking_uri: str, name: str, experiment_id: str, run_id: str) -> str:
    """Text for the console that leads to a run: a URL where a server runs, else the command that opens its experiment."""
    return _link(tracking_uri, name, f"#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning")


def study_link(tracking_uri: str, name: str, experiment_id: str) -> str:
    """Text for the console that leads to a study's learning curves, with the view that the study saved."""
    page = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={CURVES}"
    return _link(tracking_uri, name, f"{page}&compareRunsMode=CHART")


def study_pages(server: str, experiment_id: str) -> dict[str, str]:
    """Addresses of a study's pages on a server, by what they show."""
    page = f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    return {
        "arms": f"{page}&viewStateShareKey={ARMS}",
        "curves": f"{page}&viewStateShareKey={CURVES}&compareRunsMode=CHART",
        "all runs": f"{page}&viewStateShareKey={TREE}",
    }


def _link(tracking_uri: str, name: str, page: str) -> str:
    shown = hide_credentials(without_credentials(tracking_uri))
    if tracking_uri.startswith("http"):
        return f"{shown}/{page}"
    elsewhere = [] if tracking_uri == resolve_tracking_uri(None) else ["--tracking-uri", shown]
    return shlex.join(["simlap", "ui", name, *elsewhere])


def _sqlite_parts(uri: str) -> tuple[str, str]:
    """`sqlite:///a.db?x=1` -> (`a.db`, `?x=1`). Four slashes make an absolute path."""
    rest, mark, query = uri.removeprefix("sqlite:").partition("?")
    return (rest[3:] if rest.startswith("///") else ""), mark + query


def _folder(experiment: str) -> str:
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in experiment).strip(".") or "experiment"
    return safe if safe == experiment else f"{safe}-{hashlib.sha256(experiment.encode()).hexdigest()[:6]}"
