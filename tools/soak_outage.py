"""Eight processes journal while the tracking server is killed and away for two minutes: what they and MLflow make of it.

    python -m tools.soak_outage [--seconds 120] [--work DIR]

What comes of it is written to `docs/results/mlflow_outage.md`. The exit code is 1 where a claim does not hold.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.kills import machine
from tests.chaos.outage import WRITERS, Came, endure
from tests.chaos.writer import EPOCH_S, METRICS
from tests.integration.servers import Server

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "docs/results/mlflow_outage.md"
SLOWEST = 0.9
"""Throughput without the server over that with it: what a loaded machine varies by itself."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="of the outage; half as long before and after it")
    parser.add_argument("--work", type=Path, help="folder for the runs (default: a temporary one, removed in the end)")
    arguments = parser.parse_args()
    work = (arguments.work or Path(tempfile.mkdtemp(prefix="simlap-outage-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    with Server(work, f"sqlite:///{work}/server.db") as server:
        came = endure(work, server, [arguments.seconds / 2, arguments.seconds, arguments.seconds / 2])
    held = came.lost == came.doubled == 0 and came.ratio >= SLOWEST
    RESULT.write_text(page(came, held=held))
    print(RESULT.read_text(), flush=True)
    if not arguments.work:
        shutil.rmtree(work)
    sys.exit(0 if held else 1)


def page(came: Came, *, held: bool) -> str:
    """The result as Markdown."""
    facts = machine()
    git = facts.pop("git")
    commit = (
        f"{git.get('commit')}{', with changes' if git.get('dirty') else ''}" if isinstance(git, dict) else "unknown"
    )
    verdict = (
        f"{came.rows:,} numbers journalled by {WRITERS} processes, {came.lost} lost, {came.doubled} doubled in MLflow; "
        f"throughput without the server is {came.ratio:.2f} of that with it"
    )
    with_server, without = came.write_ms(up=True), came.write_ms(up=False)
    lines = [
        "# A tracking server that is killed",
        "",
        "Made by `python -m tools.soak_outage` (`make soak`); not edited by hand.",
        "",
        f"**{verdict}{'' if held else ': this does not hold'}.**",
        "",
        f"- Each process journals an epoch of {METRICS} metrics about every {EPOCH_S} s, with a checkpoint's manifest, as a "
        "worker does. One process ships all of it to an `mlflow server` on sqlite, on the same machine.",
        "- The server is killed with SIGKILL. What drifts over the test (journals grow, the machine has other work) meets the "
        "stretches before and after the outage alike.",
        f"- Publishing an epoch costs a writer {with_server[0]:.1f} ms with the server and {without[0]:.1f} ms without (medians; "
        f"99th percentiles {with_server[1]:.1f} and {without[1]:.1f} ms).",
        f"- {came.catch_up_s:.0f} s after the end of training MLflow held everything.",
        f"- Commit {commit}.",
        f"- Machine: {', '.join(f'{name} {value}' for name, value in facts.items())}.",
        "",
        "| server | seconds | epochs | epochs per second |",
        "|---|---|---|---|",
        *(
            f"| {'there' if window.up else 'killed'} | {window.seconds:.0f} | {window.epochs} | {window.rate:.1f} |"
            for window in came.windows
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
