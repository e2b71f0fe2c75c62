"""Images per second of a whole training loop, simlap's against the straightforward one (benchmarks/straightforward.py).

    python benchmarks/epoch.py [--recipe experiments/cifar10_resnet18_small.yaml] [--rounds 2] [--steps 32]

The recipe as it stands, with `channels_last`, which is no part of a run's identity; the straightforward loop knows no such thing.
Each loop has a process of its own on the same core, and they take turns (benchmarks/loops.py). `outside`: all but the backbone's
forward and backward pass, of the processor. The table also goes to benchmarks/results/epoch-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.loops import Round, take_turns
from simlap.config import load_experiment, override
from simlap.record.provenance import collect

RECIPE = "experiments/cifar10_resnet18_small.yaml"
RESULTS = Path(__file__).parent / "results"
FIGURES: dict[str, Callable[[Round], float]] = {
    "images/s, by the clock": lambda r: r.images / r.seconds,
    "images/s of the processor": lambda r: r.images / r.processor,
    "µs an image, backbone": lambda r: (sum(r.phases.values()) - r.outside) / r.images * 1e6,
    "µs an image, outside": lambda r: r.outside / r.images * 1e6,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=32, help="of simlap in a round; the other loop makes half as many")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    experiment = load_experiment(arguments.recipe)
    loops = {"straightforward": experiment, "simlap": override(experiment, [("train.channels_last", True)])}
    found = take_turns(loops, arguments.device, arguments.rounds, arguments.steps)
    table = Table("figure", "straightforward", "simlap", "ratio", box=None)
    medians = {
        name: [statistics.median(figure(r) for r in rounds) for rounds in found.values()]
        for name, figure in FIGURES.items()
    }
    for name, (plain, ours) in medians.items():
        ratio = ours / plain if name.startswith("images") else plain / ours
        table.add_row(name, f"{plain:.0f}", f"{ours:.0f}", f"{ratio:.2f}")
    console = Console()
    console.print(f"{arguments.recipe}, {arguments.device}, medians of {arguments.rounds} rounds", highlight=False)
    console.print(table)
    RESULTS.mkdir(exist_ok=True)
    rows = {
        loop: [{name: figure(r) for name, figure in FIGURES.items()} for r in rounds] for loop, rounds in found.items()
    }
    (RESULTS / f"epoch-{arguments.device}.json").write_text(
        json.dumps({"recipe": arguments.recipe, "rounds": rows, "machine": collect()}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
