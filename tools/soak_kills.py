"""Fifty random kills over a study of sixty cells, and whether it comes out as if nothing had happened.

    python -m tools.soak_kills [--kills 50] [--seed 0] [--work DIR]

Every run of the study is first made plainly: in one process after another, with neither Ray nor interruption. Then the study is
run with `simlap ablate` on a cluster of two raylets on this machine, and by a seeded schedule the driver, actors of Tune's,
workers of Train's and raylets are killed. What comes of it is written to `docs/results/kills.md`. The exit code is 1 where a
claim does not hold.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos.cluster import Raylets
from tests.chaos.kills import KINDS, Killed, OnRaylets, Ran, check, disturb, machine, schedule
from tests.chaos.study import Size, run_plainly, write_study

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "docs/results/kills.md"
SIZE = Size(arms=10, seeds=6, stage_epochs=16, epochs=4)
WHAT = {
    "driver": "the `simlap ablate` process, which is then started again",
    "actor": "a process of Tune's: a warm actor, or the driver of a worker group",
    "worker": "a worker of a Train group of two",
    "raylet": "the raylet of a node, with everything on it; a fresh node joins",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for the runs (default: a temporary one, removed in the end)")
    parser.add_argument("--hours", type=float, default=3.0, help="give up after so long")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="simlap-kills-"))
    study = write_study(work.resolve(), SIZE)
    began = time.monotonic()
    run_plainly(study, study.parent / "plain")
    plain_s = time.monotonic() - began
    print(f"undisturbed: {plain_s:.0f} s", flush=True)
    with Raylets(2) as cluster:
        kills = schedule(arguments.seed, arguments.kills, SIZE)
        ran = disturb(study, OnRaylets(cluster), kills, arguments.seed, timeout_s=3600 * arguments.hours)
    check(ran, study, study.parent / "plain")
    RESULT.write_text(page(ran, arguments.seed, plain_s))
    print(f"{RESULT}: {verdict(ran)}", flush=True)
    if not arguments.work:
        shutil.rmtree(work)
    sys.exit(1 if ran.problems else 0)


def verdict(ran: Ran) -> str:
    """In a sentence."""
    if ran.problems:
        return f"{len(ran.problems)} claims do not hold"
    return (
        f"{len(ran.killed)} kills: the study finished, no cell was lost, none was run to the end twice, and every number of "
        "every epoch, every result and every final checkpoint is that of the undisturbed run, bit for bit"
    )


def page(ran: Ran, seed: int, plain_s: float) -> str:
    """The result as Markdown."""
    facts = machine()
    git = facts.pop("git")
    commit = (
        f"{git.get('commit')}{', with changes' if git.get('dirty') else ''}" if isinstance(git, dict) else "unknown"
    )
    counts = Counter(kill.kind for kill in ran.killed)
    lines = [
        "# A study under random kills",
        "",
        "Made by `python -m tools.soak_kills` (`make soak`); not edited by hand.",
        "",
        f"**{verdict(ran)}.**",
        "",
        *(f"- {problem}" for problem in ran.problems),
        *([""] if ran.problems else []),
        f"- Study: {SIZE.arms} arms × {SIZE.seeds} seeds = {SIZE.cells} cells of one worker and {SIZE.epochs} epochs on the "
        f"digits; each seed's cells start from a stage of two workers and {SIZE.stage_epochs} epochs.",
        f"- Seed {seed}; {ran.launches} launches; {ran.seconds:.0f} s, undisturbed and without Ray {plain_s:.0f} s.",
        f"- Commit {commit}.",
        f"- Machine: {', '.join(f'{name} {value}' for name, value in facts.items())}.",
        "",
        "| killed | how often | what it is |",
        "|---|---|---|",
        *(f"| {kind} | {counts[kind]} | {WHAT[kind]} |" for kind in KINDS),
        "",
        "*Epochs*: how many different epochs the study had recorded by then. *Recovered*: seconds until the next new one, which "
        "the start of processes fills almost wholly, and how each run that was hit went on.",
        "",
        "| | second | epochs | killed | victim | runs hit | recovered |",
        "|---|---|---|---|---|---|---|",
        *(_row(number, kill, ran) for number, kill in enumerate(ran.killed, start=1)),
    ]
    return "\n".join(lines) + "\n"


def _row(number: int, kill: Killed, ran: Ran) -> str:
    hit = ", ".join(f"`{cell_id[:8]}` attempt {attempt}" for cell_id, attempt in kill.hit) or "none"
    after = []
    for cell_id, attempt in kill.hit:
        seen = ran.journals.cells[cell_id]
        following = sorted(later for later in seen.starts if later > attempt)
        if following:
            after.append(f"`{cell_id[:8]}` attempt {following[0]} from epoch {seen.starts[following[0]]}")
        else:
            after.append(f"`{cell_id[:8]}` had ended")
    seconds = f"{kill.recovered_s:.0f} s" if kill.recovered_s is not None else "–"
    recovered = "; ".join([seconds, *after])
    return f"| {number} | {kill.second:.0f} | {kill.epochs} | {kill.kind} | {kill.victim} | {hit} | {recovered} |"


if __name__ == "__main__":
    main()
