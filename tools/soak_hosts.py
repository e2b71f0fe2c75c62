"""Twenty random faults over a study on two hosts, and whether it comes out as if nothing had happened.

    python -m tools.soak_hosts [--faults 20] [--seed 0] [--work DIR]

The hosts are made of namespaces on this machine (root is needed): each has an address, processes and a raylet of its own. Every
run of the study is first made plainly: in one process after another, with neither Ray nor interruption. Then the study is run
with `simlap ablate` over the hosts, and by a seeded schedule processes are killed, hosts powered off, cables pulled, the head
lost. In the end a cable is pulled once more under a `simlap run`, with Ray's own settings. What comes of it is written to
`docs/results/faults.md`. The exit code is 1 where a promise does not hold.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.cluster import SETTINGS
from tests.chaos.host_faults import (
    CUT_WITH_DEFAULTS_S,
    HOST_KINDS,
    WHAT,
    Felt,
    OnHosts,
    felt,
    schedule_on_hosts,
    shortcomings,
)
from tests.chaos.hosts import DEFAULTS, Hosts
from tests.chaos.kills import Killed, Planned, Ran, check, disturb, machine
from tests.chaos.namespaces import lacking
from tests.chaos.study import Size, planned, run_plainly, write_study
from tests.integration.blank import blank_store

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "docs/results/faults.md"
SIZE = Size(arms=4, seeds=2, stage_epochs=24, epochs=240)
"""What is not hit by a fault trains on while a host is booted: there must be enough of it for all faults."""
DEFAULT_CUT = "A cut link under a `simlap run` of two workers, with Ray's own settings"
_RARE = "head"
"""Costs a whole cluster each time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for the runs (default: a temporary one, removed in the end)")
    parser.add_argument("--hours", type=float, default=2.0, help="give up after so long")
    arguments = parser.parse_args()
    if (why := lacking()) is not None:
        sys.exit(f"error: {why}")
    work = (arguments.work or Path(tempfile.mkdtemp(prefix="simlap-faults-"))).resolve()
    study = write_study(work, SIZE)
    (work / "mlflow.db").write_bytes(blank_store())
    began = time.monotonic()
    run_plainly(study, work / "plain")
    plain_s = time.monotonic() - began
    print(f"undisturbed: {plain_s:.0f} s", flush=True)
    groups = [cell.cell_id for cell in planned(study, work / "runs") if cell.experiment.resources.workers > 1]
    faults = schedule_on_hosts(arguments.seed, kinds_of(arguments.faults), SIZE)
    with Hosts(2) as hosts:
        scene = OnHosts(hosts, groups)
        ran = disturb(
            study, scene, faults, arguments.seed, timeout_s=3600 * arguments.hours, apart=True, tell=_print
        )  # fmt: skip
    check(ran, study, work / "plain")
    for fault in ran.killed:
        ran.problems += shortcomings(fault, work / "runs")
    print(f"{len(ran.killed)} faults in {ran.seconds:.0f} s", flush=True)
    cut_s = cut_with_defaults(study, groups[0], ran)
    RESULT.write_text(
        page(ran, work / "runs", seed=arguments.seed, plain_s=plain_s, ended_s=scene.ended_s, cut_with_defaults_s=cut_s)
    )
    print(f"{RESULT}: {verdict(ran)}", flush=True)
    if not arguments.work:
        shutil.rmtree(work)
    sys.exit(1 if ran.problems else 0)


def _print(text: str) -> None:
    print(text, flush=True)


def kinds_of(faults: int) -> list[str]:
    """So many kinds in turn, the one that costs most at every second turn."""
    turns: list[str] = []
    while len(turns) < faults:
        turns += [kind for kind in HOST_KINDS if kind != _RARE]
        if len(turns) < faults and turns.count(_RARE) < len(turns) // 12:
            turns.append(_RARE)
    return turns[:faults]


def cut_with_defaults(study: Path, cell_id: str, ran: Ran) -> float | None:
    """How long a cut link goes unnoticed with Ray's own settings, under a run of two workers. Adds to the problems."""
    folder = study.parent / "defaults"
    folder.mkdir()
    for name in ("stage.yaml", "mlflow.db"):
        shutil.copy(study.parent / name, folder / name)
    with Hosts(2, settings=DEFAULTS) as hosts:
        alone = disturb(
            folder / study.name, OnHosts(hosts, [cell_id]), [Planned("cut", 3, 0.5)], 0, timeout_s=900,
            words=["run", "stage.yaml"], cells=[cell_id],
        )  # fmt: skip
    ours, theirs = (one / "runs/cells" / cell_id / "result.json" for one in (folder, study.parent))
    if ours.read_text().split("sha256")[1] != theirs.read_text().split("sha256")[1]:
        ran.problems.append("a run whose link was cut, with Ray's own settings, ended in another state")
    (fault,) = alone.killed
    ran.problems += shortcomings(fault, folder / "runs", cut_s=CUT_WITH_DEFAULTS_S)
    return max((one.noticed_s for one in felt(fault, folder / "runs") if one.noticed_s is not None), default=None)


def verdict(ran: Ran) -> str:
    """In a sentence."""
    if ran.problems:
        return f"{len(ran.problems)} claims do not hold"
    return (
        f"{len(ran.killed)} faults: the study finished, no cell was lost, none was run to the end twice, and every number of "
        "every epoch, every result and every final checkpoint is that of the undisturbed run, bit for bit"
    )


def page(
    ran: Ran, runs: Path, *, seed: int, plain_s: float, ended_s: Sequence[float], cut_with_defaults_s: float | None
) -> str:
    """The result as Markdown."""
    facts = machine()
    git = facts.pop("git")
    commit = (
        f"{git.get('commit')}{', with changes' if git.get('dirty') else ''}" if isinstance(git, dict) else "unknown"
    )
    every = {id(fault): felt(fault, runs) for fault in ran.killed}
    kinds = [kind for kind in HOST_KINDS if any(fault.kind == kind for fault in ran.killed)]
    settings = ", ".join(f"`{name}={value}`" for name, value in SETTINGS.items())
    endings = ", ".join(f"{seconds:.0f} s" for seconds in ended_s)
    lines = [
        "# A study on two hosts under random faults",
        "",
        "Made by `python -m tools.soak_hosts` (`make soak`); not edited by hand.",
        "",
        f"**{verdict(ran)}.**",
        "",
        *(f"- {problem}" for problem in ran.problems),
        *([""] if ran.problems else []),
        f"- Study: {SIZE.arms} arms × {SIZE.seeds} seeds = {SIZE.cells} cells of one worker and {SIZE.epochs} epochs on the "
        f"digits; each seed's cells start from a stage of two workers, one on each host, and {SIZE.stage_epochs} epochs. A "
        "checkpoint every epoch.",
        "- Hosts: namespaces of one machine, a head without CPUs and two workers of one CPU, with addresses, processes and "
        f"mounts of their own; the head's Ray has {settings}.",
        f"- Seed {seed}; {ran.launches} launches; {ran.seconds:.0f} s, undisturbed and without Ray {plain_s:.0f} s.",
        *([f"- Without its head the command ended by itself after {endings}."] if endings else []),
        *([] if cut_with_defaults_s is None else [f"- {DEFAULT_CUT}: noticed after {cut_with_defaults_s:.0f} s."]),
        f"- Commit {commit}.",
        f"- Machine: {', '.join(f'{name} {value}' for name, value in facts.items())}.",
        "",
        "*Noticed*: until the attempt was known to be over (of a driver or head: until somebody had started another). *Again*: "
        "until the next attempt had finished an epoch, which waits for the host to be booted and for processes to start. "
        "*Twice*: epochs that were trained twice. The largest of each kind:",
        "",
        "| fault | how often | noticed | again | twice | what it is |",
        "|---|---|---|---|---|---|",
        *(_summary(kind, [every[id(fault)] for fault in ran.killed if fault.kind == kind]) for kind in kinds),
        "",
        "| | second | epochs | fault | victim | runs hit | noticed | again | twice |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(number, fault, every[id(fault)]) for number, fault in enumerate(ran.killed, start=1)),
    ]
    return "\n".join(lines) + "\n"


def _summary(kind: str, every: Sequence[Sequence[Felt]]) -> str:
    largest = _largest([one for each in every for one in each])
    return f"| {kind} | {len(every)} | {' | '.join(largest)} | {WHAT[kind]} |"


def _row(number: int, fault: Killed, every: Sequence[Felt]) -> str:
    hit = ", ".join(f"`{cell_id[:8]}` attempt {attempt}" for cell_id, attempt in fault.hit) or "none"
    columns = (number, f"{fault.second:.0f}", fault.epochs, fault.kind, fault.victim, hit, *_largest(every))
    return f"| {' | '.join(map(str, columns))} |"


def _largest(every: Sequence[Felt]) -> tuple[str, str, str]:
    hurt = [one for one in every if one.noticed_s is not None and one.again_s is not None]
    if not hurt:
        return "–", "–", "–"
    noticed, again = max(one.noticed_s or 0.0 for one in hurt), max(one.again_s or 0.0 for one in hurt)
    return f"{noticed:.1f} s", f"{again:.0f} s", str(max(one.redone for one in hurt))


if __name__ == "__main__":
    main()
