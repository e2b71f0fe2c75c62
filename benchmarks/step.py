"""Where the time of a training step goes: simlap's and the straightforward one's (benchmarks/straightforward.py), phase by phase.

    python benchmarks/step.py [--recipe FILE] [--rounds 2] [--steps 32] [--device cpu|cuda]

CPU: cifar10_resnet18_small.yaml, in milliseconds of the processor. CUDA: the authors' cifar10_resnet18.yaml, in milliseconds of
the device's time line, also with `train.compile`, and how long its 7.5 million images would take. simlap's with `channels_last`.
Processes take turns, see benchmarks/loops.py. The table also goes to benchmarks/results/step-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.loops import PHASES, Round, take_turns
from simlap.config import load_experiment, override
from simlap.record.provenance import collect

RECIPES = {"cpu": "experiments/cifar10_resnet18_small.yaml", "cuda": "experiments/cifar10_resnet18.yaml"}
IMAGES = 7.5e6
"""Of the authors' pretraining: 50 epochs of 150,000."""
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=32, help="of simlap in a round; the other loop makes half as many")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    device: str = arguments.device
    recipe: str = arguments.recipe or RECIPES[device]
    experiment = load_experiment(recipe)
    ours = override(experiment, [("train.channels_last", True)])
    loops = {"straightforward": experiment, "simlap": ours}
    if device == "cuda":
        loops["simlap, compiled"] = override(ours, [("train.compile", True)])
    found = take_turns(loops, device, arguments.rounds, arguments.steps)
    rows = {loop: _figures(rounds, experiment.train.batch_size) for loop, rounds in found.items()}
    table = Table("ms a step", *rows, "ratio", box=None)
    for name in rows["simlap"]:
        values = [row[name] for row in rows.values()]
        ratio = max(values[0], 1e-9) / max(values[1], 1e-9)
        table.add_row(name, *(f"{value:.2f}" for value in values), f"{1 / ratio if '/s' in name else ratio:.2f}")
    console = Console()
    console.print(f"{recipe}, {device}, batches of {experiment.train.batch_size}", highlight=False)
    console.print(table)
    if device == "cuda":
        for loop, row in rows.items():
            seconds = IMAGES / row["images/s, by the clock"]
            console.print(f"{loop}: {IMAGES / 1e6:g} million images in {seconds:.0f} s", highlight=False)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"step-{device}.json").write_text(
        json.dumps({"recipe": recipe, "figures": rows, "machine": collect()}, indent=1) + "\n"
    )


def _figures(rounds: list[Round], batch_size: int) -> dict[str, float]:
    """Medians over the rounds: milliseconds a step by phase, and images per second."""

    def per_step(phase: str) -> float:
        return statistics.median(r.phases[phase] * batch_size / r.images for r in rounds) * 1e3

    phases = {phase: per_step(phase) for phase in PHASES}
    return {
        **phases,
        "all": sum(phases.values()),
        "all but the backbone": statistics.median(r.outside * batch_size / r.images for r in rounds) * 1e3,
        "images/s, by the clock": statistics.median(r.images / r.seconds for r in rounds),
    }


if __name__ == "__main__":
    main()
