"""What takes too long for every contribution: the recipes on real images, and what must come out of them.

    python tools/soak.py [STEP ...] [--work DIR]

Every step runs a command line as a user would, notes how long it took, holds the outcome against what the project claims, and
writes `docs/results/<step>.json` with commit and machine; a study's report lies beside it. Runs are kept in DIR, so a step that
was interrupted goes on. The exit code is 1 where a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simlap.record.journal import read_cell, read_study
from simlap.record.provenance import collect
from simlap.record.view import ArmView, CellView, StudyView
from simlap.report.claims import judge
from simlap.report.compare import Comparison, final_values, simple_effects
from simlap.report.figure_files import write_figures
from simlap.report.gate_figures import GateData, heat_map
from simlap.report.gate_map import class_map_of, map_figure
from simlap.report.stats import paired
from simlap.storage import Storage

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs/results"
CLI = [sys.executable, "-m", "simlap.cli"]
Claim = tuple[str, bool]


class Soak:
    """Runs command lines and collects what came of them."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.storage = Storage(str(work / "runs"))
        self.options = ["--storage", str(work / "runs"), "--tracking-uri", f"sqlite:///{work / 'mlflow.db'}"]

    def study(self, name: str, folder_name: str = "", *, gates: bool = False) -> tuple[dict[str, Any], StudyView]:
        """Apply `ablations/<name>.yaml` and write its report with figures to a folder, of its own name where none is given.

        With `gates`, what these learnt is looked at too, over all seeds of every arm.
        """
        facts = self._run(["ablate", f"ablations/{name}.yaml"], self.options)
        view = read_study(self.storage, name)
        folder, kept = RESULTS / (folder_name or name), self.work / "runs/studies" / name
        folder.mkdir(parents=True, exist_ok=True)
        if gates:
            facts["gates"] = self._run(["gates", name], self.options[:2])
            self._gates(view, kept / "gates", folder)
        report = folder / "report.md"
        told = f"{(folder / 'report.md').relative_to(ROOT)}"
        self._run(["report", name, "--format", "md", "--figures", "png", "-o", told], self.options[:2])
        (folder / "summary.json").write_text((kept / "report/summary.json").read_text())
        for file in (report, folder / "summary.json"):
            file.write_text(file.read_text().replace(f" {shlex.join(self.options)}", ""))
        cells = [cell for arm in view.arms for cell in arm.cells]
        return {**facts, "cells": len(cells), "device_seconds": round(sum(cell.seconds for cell in cells))}, view

    def _gates(self, view: StudyView, pages: Path, folder: Path) -> None:
        """The numbers of all arms, and the figures of the baseline's page."""
        summary = json.loads((pages / "summary.json").read_text())
        (folder / "gates.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
        baseline = next(arm.name for arm in view.arms if arm.is_baseline)
        page = next(entry["page"] for entry in summary["arms"] if entry["arm"] == baseline)
        data = GateData(json.loads((pages / page).with_suffix(".json").read_text()))
        plots = {"gates-distance": heat_map(data)}
        if (found := class_map_of(data)) is not None:
            plots["gates-map"] = map_figure(data, found)
        write_figures(plots, folder / "report_figures", "png")

    def run(self, name: str, *changes: str) -> tuple[dict[str, Any], CellView]:
        """Run `experiments/<name>.yaml`."""
        before = set(self.storage.list("cells"))
        facts = self._run(["run", f"experiments/{name}.yaml", *changes], [*self.options, "--resume"])
        known = set(self.storage.list("cells"))
        label = name.replace("_", "-")
        found = [read_cell(self.storage, cell) for cell in sorted(known - before) or sorted(known)]
        seed = next((int(change.removeprefix("seed=")) for change in changes if change.startswith("seed=")), 0)
        view = next(cell for cell in found if cell.config["name"] == label and cell.seed == seed)
        return {**facts, "seed": view.seed, "result": view.result}, view

    def _run(self, command: list[str], options: list[str]) -> dict[str, Any]:
        print("$", shlex.join(["simlap", *command]), flush=True)
        began = time.monotonic()
        subprocess.run([*CLI, *command, *options], cwd=ROOT, check=True)
        return {"command": shlex.join(["simlap", *command]), "seconds": round(time.monotonic() - began)}


def digits(soak: Soak) -> tuple[dict[str, Any], list[Claim]]:
    """The demo: filter on or off, with arbitrary, identical and distinct pairs, on the digits."""
    facts, view = soak.study("filter", "digits", gates=True)
    return facts, _claims(view)


def cifar10_small(soak: Soak) -> tuple[dict[str, Any], list[Claim]]:
    """The central study: filter on or off, SupCon, with arbitrary and with distinct pairs."""
    facts, view = soak.study("cifar10_small", gates=True)
    return facts, [
        *_claims(view),
        ("its runs take no more than 60 minutes, one after another", facts["device_seconds"] <= 3600),
    ]


def long_training(soak: Soak) -> tuple[dict[str, Any], list[Claim]]:
    """Collapse over long training, against SupCon and SimCLR: what the paper claims, on the digits; no claim of ours."""
    facts, view = soak.study("long_training")
    told = [{"claim": one.claim, "verdict": one.verdict, "text": one.text} for one in judge(view)]
    return {**facts, "the paper's claims": told}, [_all_end(view)]


def finetune(soak: Soak) -> tuple[dict[str, Any], list[Claim]]:
    """Fine-tuning from SimLAP and from SupCon against the same network from scratch, and the frozen backbones' linear probes."""
    facts, view = soak.study("finetune")
    scratch = final_values(view, _arm(view, "start=scratch layer_decay=1.0"))
    linear: dict[str, Any] = {}
    for start in ("simlap", "supcon"):
        cells = _arm(view, f"start={start} layer_decay=0.65").cells
        stages = [read_cell(soak.storage, cell.start) for cell in cells if cell.start is not None]
        linear[start] = [stage.result["test/linear_top1"] for stage in stages]
        if scratch is not None:
            linear[f"{start} - scratch"] = asdict(paired(linear[start], scratch))
    return {**facts, "test/linear_top1 of the frozen backbone": linear}, [
        _is_worse(_effect(view, "start", "scratch", layer_decay="1.0"))
    ]


def fashion_mnist(soak: Soak) -> tuple[dict[str, Any], list[Claim]]:
    """Filter on or off, and SupCon, on a fifth of Fashion-MNIST."""
    facts, view = soak.study("fashion_mnist", gates=True)
    return facts, _claims(view)


def fashion_mnist_run(soak: Soak) -> tuple[dict[str, Any], list[Claim]]:
    """All of Fashion-MNIST on a laptop."""
    facts, view = soak.run("fashion_mnist_small")
    top1 = view.result["test/probe_top1"]
    return facts, [
        (f"probe accuracy {top1:.4f} is at least 0.88", top1 >= 0.88),
        ("takes no more than ten minutes", facts["seconds"] <= 600),
    ]


def fuse(soak: Soak) -> tuple[dict[str, Any], list[Claim]]:
    """The joint run of classification and subspace InfoNCE against classification alone: numbers, no claim."""
    facts, view = soak.study("fuse")
    return facts, [_all_end(view)]


STEPS: dict[str, Callable[[Soak], tuple[dict[str, Any], list[Claim]]]] = {
    step.__name__: step
    for step in (digits, fashion_mnist, fashion_mnist_run, long_training, cifar10_small, finetune, fuse)
}


def _claims(view: StudyView) -> list[Claim]:
    """Those of the study's file, with the numbers."""
    return [(f"{one.claim}: {one.text}", one.verdict == "holds") for one in judge(view)]


def _all_end(view: StudyView) -> Claim:
    return "all cells end", all(cell.state == "done" for arm in view.arms for cell in arm.cells)


def _arm(view: StudyView, name: str) -> ArmView:
    return next(arm for arm in view.arms if arm.name == name)


def _effect(view: StudyView, factor: str, level: str, **at: str) -> Comparison:
    """The level against the baseline's, all else equal."""
    (effect,) = [e for e in simple_effects(view) if (e.factor, e.level, e.at) == (factor, level, at)]
    return effect.comparison


def _is_worse(comparison: Comparison) -> Claim:
    """The arm loses against its reference on the test set, with all seeds, and zero is outside the interval."""
    difference = comparison.paired
    text = f"{comparison.arm} is worse than {comparison.reference}"
    if difference is None or difference.low is None or difference.high is None or not comparison.final:
        return f"{text}: not all seeds are there", False
    low, high = 100 * difference.low, 100 * difference.high
    return f"{text}: {100 * difference.mean:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}", high < 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)} (default: all)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "soak")
    arguments = parser.parse_args()
    if unknown := set(arguments.steps) - set(STEPS):
        parser.error(f"no such step: {', '.join(sorted(unknown))}; choices: {', '.join(STEPS)}")
    arguments.work.mkdir(parents=True, exist_ok=True)
    soak = Soak(arguments.work.resolve())
    failed = list(_run_steps(soak, arguments.steps or list(STEPS)))
    sys.exit(1 if failed else 0)


def _run_steps(soak: Soak, steps: list[str]) -> Iterator[str]:
    """Yields what does not hold."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    machine = {name: value for name, value in collect().items() if name != "command"}
    for name in steps:
        facts, claims = STEPS[name](soak)
        outcome = {**facts, "claims": [{"claim": text, "holds": holds} for text, holds in claims], "machine": machine}
        (RESULTS / f"{name}.json").write_text(json.dumps(outcome, indent=1) + "\n")
        for text, holds in claims:
            print(f"{name}: {'holds' if holds else 'DOES NOT HOLD'}: {text}", flush=True)
            if not holds:
                yield text


if __name__ == "__main__":
    main()
