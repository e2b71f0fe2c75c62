"""The command line: argument parsing and printing, nothing else."""

from simlap.cli import check, data, evaluate, gates, gc, logs, run, simulate, study, ui, verify  # noqa: F401 - they add their commands to the app
from simlap.cli.app import FAILED, INTERRUPTED, OK, WRONG_INPUT, app, main

__all__ = ["FAILED", "INTERRUPTED", "OK", "WRONG_INPUT", "app", "main"]
