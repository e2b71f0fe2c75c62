"""Augmentation of the two CIFAR-10 recipes: simlap's, a batch at once, against timm's, image by image.

    python benchmarks/augment.py [--rounds 15] [--device cpu|cuda]

CPU: microseconds of processor time an image, one thread, medians over rounds in which both take turns. timm's is its own
`create_transform` of the recipe on Pillow images that lie ready, stacked to a batch: what a DataLoader worker does after
decoding. simlap's includes its draws and takes several steps at once, as the loader does; the figure for one step at a time
stands beside it. The stages are differences between a recipe and one with less switched on.
CUDA: simlap's alone, a batch on the device's time line, the kernels that it starts, and the time the host needs for that.
Images are smooth random ones of 32 x 32. The table also goes to benchmarks/results/augment-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from simlap.config import load_experiment
from simlap.config.schema import Augment, Data
from simlap.data.augment import Drawn, augment_steps, build_augmenter
from simlap.data.augment.reference import TimmAugmenter
from simlap.record.provenance import collect

RECIPES = {"cifar10_resnet18": "authors'", "cifar10_resnet18_small": "small"}
# what timm augments in a round: fewer than a batch, so that a round is short
IMAGES = 64
ROOT = Path(__file__).parent.parent
# of training, in a round of simlap's
STEPS = 8
Round = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    device: str = arguments.device
    measure = on_cuda if device == "cuda" else on_cpu
    console, results = Console(), {}
    for name in RECIPES:
        experiment = load_experiment(ROOT / "experiments" / f"{name}.yaml")
        figures = measure(experiment.data, experiment.train.batch_size, arguments.rounds)
        results[name] = {"batch_size": experiment.train.batch_size, **figures}
        table = Table(f"{name}, batches of {experiment.train.batch_size}, {device}", "", box=None)
        for figure, value in figures.items():
            table.add_row(figure, f"{value:,.1f}")
        console.print(table)
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    report = {"rounds": arguments.rounds, "recipes": results, "machine": collect()}
    (folder / f"augment-{device}.json").write_text(json.dumps(report, indent=1) + "\n")


def on_cpu(data: Data, batch_size: int, rounds: int) -> dict[str, float]:
    torch.set_num_threads(1)
    images, pillows = _images(batch_size), [_pillow(image) for image in _images(IMAGES)]
    transform = TimmAugmenter(data.augment, data.image_size, *_statistics(data))._transform
    stages = _stages(data.augment)
    found = _turns(
        {
            "timm": (lambda: torch.stack([transform(image) for image in pillows]), IMAGES),
            "single": (_steps(data.augment, data, images, 1), batch_size),
            **{name: (_steps(part, data, images, STEPS), batch_size * STEPS) for name, part in stages.items()},
        },
        rounds,
    )
    ours = found["all"]
    figures = {"timm, us an image": found["timm"], "simlap, us an image": ours, "ratio": found["timm"] / ours}
    figures |= {"timm, images/s": 1e6 / found["timm"], "simlap, images/s": 1e6 / ours}
    figures |= {
        "simlap, one step at a time, us an image": found["single"],
        "its ratio": found["timm"] / found["single"],
    }
    before = 0.0
    for name in stages:
        label = "erasing" if name == "all" else name
        figures[f"of which {label}, us an image"] = found[name] - before
        before = found[name]
    return figures


def on_cuda(data: Data, batch_size: int, rounds: int) -> dict[str, float]:
    from torch.profiler import ProfilerActivity, profile

    steps = _steps(data.augment, data, _images(batch_size).cuda(), STEPS)
    steps()
    torch.cuda.synchronize()
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    started = time.perf_counter()
    first.record()
    for _ in range(rounds):
        steps()
    last.record()
    host = time.perf_counter() - started
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        steps()
        torch.cuda.synchronize()
    kernels = [event for event in seen.events() if event.device_type.name == "CUDA"]
    return {
        "time line, us a batch": 1e3 * first.elapsed_time(last) / rounds / STEPS,
        "device busy, us a batch": sum(event.time_range.elapsed_us() for event in kernels) / STEPS,
        "host, us a batch": 1e6 * host / rounds / STEPS,
        "kernels and copies a batch": len(kernels) / STEPS,
    }


def _stages(augment: Augment) -> dict[str, Augment]:
    """The recipe with one more transform switched on each time; the last is the whole."""
    off: dict[str, Any] = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0}
    colours: dict[str, Any] = {"rand_augment": None, "brightness": 0.0, "contrast": 0.0}
    plain = augment.model_copy(update={**off, **colours, "erase": 0.0})
    return {
        "normalisation": plain,
        "crop and flip": augment.model_copy(update={**colours, "erase": 0.0}),
        "RandAugment" if augment.rand_augment else "brightness and contrast": augment.model_copy(update={"erase": 0.0}),
        "all": augment,
    }


def _steps(augment: Augment, data: Data, images: Tensor, steps: int) -> Round:
    """A function that augments the images so many times, by another key each time."""
    augmenter, keys = build_augmenter(augment, data.image_size, *_statistics(data)), count()
    samples = torch.arange(len(images))

    def do() -> None:
        key = next(keys)
        copies = [torch.full_like(samples, step) for step in range(steps)]
        draws = augmenter.draw(key, samples.repeat(steps), torch.cat(copies)).split(len(images))
        drawn = (Drawn(images, samples, *rest) for rest in zip(copies, draws, strict=True))
        for _ in augment_steps(augmenter, key, drawn):
            pass

    return do


def _turns(parts: dict[str, tuple[Round, int]], rounds: int) -> dict[str, float]:
    """Medians of each part's processor time, in microseconds an image. A part: what to do, and to how many images."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(rounds + 2):
        for name, (do, images) in parts.items():
            began = time.process_time()
            do()
            if number >= 2:  # warm
                seconds[name].append((time.process_time() - began) / images)
    return {name: 1e6 * statistics.median(times) for name, times in seconds.items()}


def _statistics(data: Data) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and spread of the recipe, or CIFAR-10's."""
    mean, std = data.mean or (0.4914, 0.4822, 0.4465), data.std or (0.2470, 0.2435, 0.2616)
    return tuple(mean), tuple(std)


def _images(number: int) -> Tensor:
    coarse = torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    return F.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 255).to(torch.uint8)


def _pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


if __name__ == "__main__":
    main()
