"""`simlap ablate --detach`: the launch in a session of its own, which outlives the terminal."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import typer

from simlap.cli.app import OK
from simlap.cli.output import complain, out
from simlap.storage import Storage
from simlap.study.events import segments

PATIENCE_S = 120.0
"""A launch that has neither begun nor ended by then is left to itself."""
_POLL_S = 0.1
_LINES = 20


def detach(words: Sequence[str], storage: Storage, study: str) -> None:
    """Start `simlap WORDS` by itself, and say where its log is, how to watch it and how to stop it.

    Always raises typer.Exit: with the launch's exit code where it ends before it has begun to run cells.

    Args:
        words: the command line, without `simlap`.
        storage: that holds the study.
        study: its name.
    """
    folder = storage.child("studies", study)
    before = _launches(folder)
    log = _log_file(folder, study)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # of a shell's background job: the launch would inherit it, and could not be stopped with what we tell the user
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "simlap.cli", *words],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    end = time.monotonic() + PATIENCE_S
    try:
        while _launches(folder) == before and time.monotonic() < end:
            if (code := process.poll()) is not None:
                _print_end(log, code)
                raise typer.Exit(code if code >= 0 else 128 - code)
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        pass  # of the waiting; the launch is in a session of its own
    place = [] if storage.uri == Storage("./runs").uri else ["--storage", storage.uri]
    out.print(f"started        process {process.pid}", markup=False)
    for what, command in (
        ("its log", str(log)),
        ("watch it", shlex.join(["simlap", "status", study, *place, "--watch"])),
        ("stop it", f"kill -INT {process.pid}"),
    ):
        out.print(f"{what:<14} {command}", soft_wrap=True, markup=False)
    raise typer.Exit(OK)


def _launches(folder: Storage) -> int:
    return max((segment.launch for segment in segments(folder)), default=0)


def _log_file(folder: Storage, study: str) -> Path:
    """A new file in the study's folder, or in the temporary one where the storage is elsewhere."""
    name = f"launch-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    path = folder.local_path(name) or Path(tempfile.gettempdir(), f"simlap-{study}-{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _print_end(log: Path, code: int) -> None:
    said = log.read_text(errors="replace").splitlines()
    for line in said[-_LINES:]:
        out.print(line, soft_wrap=True, markup=False)
    if code != OK:
        complain(f"the launch ended at once, with code {code}; its log: {log}")
