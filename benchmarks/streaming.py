"""What it costs to decode images while training goes on, instead of holding them decoded.

    python benchmarks/streaming.py [--device cpu|cuda] [--data ../shared/data/cifar10] [--images 1600]

Decoding: images a second and thread, from Parquet, for CIFAR-10's files as they are stored and for photographs of 256 pixels
made here (smooth noise, JPEG of quality 90), by one thread and by as many as there are cores. Training: epochs of so many
images with the model, batch and augmentation of experiments/cifar10_resnet18_small.yaml and with `data.streaming`, against the
same epochs with the images in memory (one window, so both see the same batches); in turns, three times, medians; what a stream
reads when an epoch begins counts. `alone` is the streaming loader without the step: what it delivers at most. Also goes to
benchmarks/results/streaming-<device>.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from simlap.config import Experiment, load_experiment
from simlap.config.schema import Augment, ParquetData
from simlap.config.schema.data import Streaming
from simlap.data import Splits, convert, load_splits
from simlap.data.loader import TrainLoader
from simlap.record.provenance import collect
from simlap.train.step import build, train_step
from simlap.train.world import World

HERE = Path(__file__).parent
TURNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data" / "cifar10")
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--photos", type=int, default=1000)
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(1)  # as the recipe says: decoders have the other cores
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder), args.photos)
        # with row groups as shards for streaming have them; the bytes of the images stay as they are
        small = Path(folder) / "cifar10"
        convert(parquet(args.data, 32, ".parquet", fraction=args.images / 50_000), str(small))
        sets = {"CIFAR-10": parquet(small, 32), "photographs": parquet(photos, 256)}
        decoding = {
            f"{name}, {threads} thread{'s' * (threads > 1)}": decode(data, threads)
            for name, data in sets.items()
            for threads in sorted({1, os.cpu_count() or 1})
        }
        training = train(small, device)
    table = Table("decoding", "images/s", "images/s and thread", "CPU µs an image", box=None)
    for name, row in decoding.items():
        table.add_row(name, *(f"{row[key]:,.0f}" for key in ("images_per_s", "per_thread", "cpu_us")))
    console.print(table)
    table = Table("training", "images/s", "CPU s per 1,000 images", box=None)
    for name, row in training.items():
        table.add_row(name, f"{row['images_per_s']:,.0f}", f"{row['cpu_s']:.2f}")
    console.print(table)
    ratio = training["streamed"]["images_per_s"] / training["in memory"]["images_per_s"]
    cpu = training["streamed"]["cpu_s"] / training["in memory"]["cpu_s"]
    console.print(
        f"streamed / in memory: {ratio:.3f} of the images a second, {cpu:.3f} of the CPU time", highlight=False
    )
    results = HERE / "results" / f"streaming-{device.type}.json"
    results.parent.mkdir(exist_ok=True)
    figures = {"decoding": decoding, "training": training, "ratio": ratio, "cpu_ratio": cpu}
    results.write_text(json.dumps({"images": args.images, "figures": figures, "machine": collect()}, indent=1) + "\n")


def parquet(folder: Path, size: int, suffix: str = "", fraction: float = 1.0) -> ParquetData:
    return ParquetData(
        source="parquet",
        train=str(folder / f"train{suffix}"),
        test=str(folder / f"test{suffix}"),
        image_size=size,
        fraction=fraction,
        validation="none",
        augment=Augment(),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


def make_photos(folder: Path, count: int) -> Path:
    """Noise of 32 pixels, enlarged to 288 x 256: about as many bytes as a photograph of that size."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(count):
        small = Image.fromarray(generator.integers(0, 256, (32, 36, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((288, 256), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        images.append(buffer.getvalue())
    for part, chosen in (("train", images), ("test", images[:2])):
        labels = pa.array([i % 2 for i in range(len(chosen))])
        table = pa.table({"image": pa.array(chosen, pa.binary()), "label": labels})
        (folder / part).mkdir()
        pq.write_table(table, folder / part / "0.parquet", row_group_size=256)
    return folder


def decode(data: ParquetData, threads: int) -> dict[str, float]:
    """One pass over the training part."""
    data = data.model_copy(update={"streaming": Streaming(workers=threads)})
    splits = load_splits(data)
    next(iter(splits.train.batches(64)))  # the decoder's import
    count, cpu, started = len(splits.train), time.process_time(), time.perf_counter()
    for _ in splits.train.batches(256):
        pass
    elapsed, used = time.perf_counter() - started, time.process_time() - cpu
    return {"images_per_s": count / elapsed, "per_thread": count / elapsed / threads, "cpu_us": used / count * 1e6}


def train(folder: Path, device: torch.device) -> dict[str, dict[str, float]]:
    """The same epochs with images in memory and with streamed ones."""
    changes = [f"data.train={folder / 'train'}", f"data.test={folder / 'test'}", "data.fraction=1.0"]
    experiment = load_experiment(HERE.parent / "experiments" / "cifar10_resnet18_small.yaml", changes)
    lazy = experiment.data.model_copy(update={"streaming": Streaming(workers=max(1, (os.cpu_count() or 1) - 1))})
    streaming = experiment.model_copy(update={"data": lazy})
    held = load_splits(experiment.data)
    given = experiment.data.model_copy(update={"mean": held.mean, "std": held.std, "streaming": lazy.streaming})
    ways: dict[str, Any] = {
        "in memory": run(experiment, held, device),
        "streamed": run(streaming, load_splits(given), device),
        "streamed, alone": run(streaming, load_splits(given), device, step=False),
    }
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            seen[name].append(next(way))
    size = experiment.train.batch_size
    rows = len(held.train) // size * size
    return {
        name: {
            "images_per_s": rows / statistics.median(wall for wall, _ in turns),
            "cpu_s": statistics.median(cpu for _, cpu in turns) / rows * 1000,
        }
        for name, turns in seen.items()
    }


def run(
    experiment: Experiment, splits: Splits, device: torch.device, *, step: bool = True
) -> Iterator[tuple[float, float]]:
    """Seconds, and seconds of all cores, of an epoch, again and again."""
    state = build(experiment, splits, World(device=device))
    loader: TrainLoader = state.loader
    warm = loader.batches(0)
    train_step(state, next(warm))
    del warm
    while True:
        started, cpu = time.perf_counter(), time.process_time()
        for batch in loader.batches(state.epoch):
            if step:
                train_step(state, batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        state.epoch += 1
        yield time.perf_counter() - started, time.process_time() - cpu


if __name__ == "__main__":
    main()
