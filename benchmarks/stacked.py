"""Several cells as one batched program: does it win?

    python benchmarks/stacked.py [--cells 4] [--device cpu|cuda]

Cells of a study that differ in seed, filter or loss settings have the same shapes. Three ways to make one step of all of them,
each cell with parameters and images of its own, Adam, float32:

- `one by one`: what simlap does; a step of every cell in turn, with the library's loss.
- `stacked heads`: backbones one by one; projector, filter and loss of all cells in one `torch.func.vmap` over stacked parameters.
- `stacked`: the backbone in the same program, which makes grouped convolutions of its convolutions.

The stacked losses are two matrix products and autograd: the library's own backward is no batched program. The table also goes to
benchmarks/results/stacked-<device>.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from simlap.config.schema import Backbone, SigmoidGate
from simlap.losses import subspace_info_nce
from simlap.nn.backbone import build_backbone
from simlap.nn.filter import build_filter
from simlap.nn.projector import Projector
from simlap.record.provenance import collect

NUM_CLASSES, TEMPERATURE, ROUNDS = 10, 0.1, 15
SMALL_RESNET = {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256], "stem_type": "deep", "stem_width": 16}
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {"backbone": {"name": "conv3"}, "image": (1, 8), "batch": 64, "embed_dim": 128, "hidden": 256},
    "cifar10_resnet18_small": {
        "backbone": {"name": "resnet18", "kwargs": SMALL_RESNET}, "image": (3, 32), "batch": 128, "embed_dim": 128, "hidden": 512,
    },
}  # fmt: skip
Step = Callable[[], None]


class Heads(nn.Module):
    """Projector and filter of one cell."""

    def __init__(self, num_features: int, recipe: dict[str, Any]) -> None:
        super().__init__()
        self.projector = Projector(num_features, recipe["embed_dim"], recipe["hidden"])
        self.filter = build_filter(SigmoidGate(kind="sigmoid"), NUM_CLASSES, recipe["embed_dim"])

    def forward(self, h: Tensor, labels: Tensor, pair_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and gates, [b, D] each."""
        gates: Tensor = self.filter(labels, pair_labels).gates
        return self.projector(h), gates


class Cell(nn.Module):
    """One cell."""

    def __init__(self, recipe: dict[str, Any], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        channels, size = recipe["image"]
        self.backbone = build_backbone(Backbone(**recipe["backbone"]), channels, size)
        self.heads = Heads(int(self.backbone.num_features), recipe)  # type: ignore[arg-type]
        for module in self.modules():  # a batched program cannot change what is not batched
            if isinstance(module, nn.ReLU):
                module.inplace = False

    def forward(self, images: Tensor, labels: Tensor, pair_labels: Tensor) -> Tensor:
        """The loss, with two products and autograd."""
        z, gates = self.heads(self.backbone(images), labels, pair_labels)
        return two_products(z, gates, labels, pair_labels)


def two_products(z: Tensor, gates: Tensor, labels: Tensor, pair_labels: Tensor) -> Tensor:
    """The subspace InfoNCE with keys z (docs/method.md, steps 3 to 5)."""
    squared = gates.square()
    norms = (gates * z).norm(dim=1, keepdim=True) * (squared @ z.square().T).sqrt()
    logits = (squared * z) @ z.T / norms / TEMPERATURE
    positive = labels[None, :] == pair_labels[:, None]
    negative = ~positive & (labels[None, :] != labels[:, None])
    of_negatives = logits.masked_fill(~negative, -1e30).logsumexp(dim=1, keepdim=True)
    return (F.softplus(of_negatives - logits) * positive).sum() / positive.sum()


def one_by_one(cells: list[Cell], batches: list[tuple[Tensor, ...]]) -> Step:
    optimizers = [torch.optim.Adam(cell.parameters(), fused=True) for cell in cells]

    def step() -> None:
        for cell, optimizer, (images, labels, pairs) in zip(cells, optimizers, batches, strict=True):
            optimizer.zero_grad(set_to_none=True)
            z, gates = cell.heads(cell.backbone(images), labels, pairs)
            subspace_info_nce(z, z, gates, labels, pairs, labels, temperature=TEMPERATURE).backward()
            optimizer.step()

    return step


def stacked(cells: list[Cell], batches: list[tuple[Tensor, ...]]) -> Step:
    parameters, buffers = stack_module_state(cells)
    optimizer = torch.optim.Adam(parameters.values(), fused=True)
    template = copy.deepcopy(cells[0]).to("meta")
    images, labels, pairs = (torch.stack(column) for column in zip(*batches, strict=True))

    def loss(parameters: Any, buffers: Any, *batch: Tensor) -> Tensor:
        value: Tensor = functional_call(template, (parameters, buffers), batch)
        return value

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        vmap(loss)(parameters, buffers, images, labels, pairs).sum().backward()
        optimizer.step()

    return step


def stacked_heads(cells: list[Cell], batches: list[tuple[Tensor, ...]]) -> Step:
    parameters, buffers = stack_module_state([cell.heads for cell in cells])
    backbones = [cell.backbone for cell in cells]
    optimizer = torch.optim.Adam([*parameters.values(), *(p for b in backbones for p in b.parameters())], fused=True)
    template = copy.deepcopy(cells[0].heads).to("meta")
    labels, pairs = (torch.stack(column) for column in list(zip(*batches, strict=True))[1:])

    def loss(parameters: Any, buffers: Any, h: Tensor, labels: Tensor, pairs: Tensor) -> Tensor:
        z, gates = functional_call(template, (parameters, buffers), (h, labels, pairs))
        return two_products(z, gates, labels, pairs)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        h = torch.stack([backbone(images) for backbone, (images, *_) in zip(backbones, batches, strict=True)])
        vmap(loss)(parameters, buffers, h, labels, pairs).sum().backward()
        optimizer.step()

    return step


FORMS = {"one by one": one_by_one, "stacked heads": stacked_heads, "stacked": stacked}


def measure(recipe: dict[str, Any], num_cells: int, device: torch.device) -> dict[str, float]:
    """Median seconds of one step of all cells, by form; the forms take turns."""
    (channels, size), rows = recipe["image"], recipe["batch"]
    torch.manual_seed(0)
    batches = []
    for _ in range(num_cells):
        labels = torch.randint(NUM_CLASSES, (rows,))
        batch = (torch.randn(rows, channels, size, size), labels, labels[torch.randperm(rows)])
        batches.append(tuple(part.to(device) for part in batch))
    steps = {
        name: form([Cell(recipe, s).to(device) for s in range(num_cells)], batches) for name, form in FORMS.items()
    }
    for step in steps.values():  # warm-up
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            _synchronise(device)
            start = time.perf_counter()
            step()
            _synchronise(device)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", type=int, default=4)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title=f"one step of {options.cells} cells")
    for column in ("recipe", "form", "milliseconds", "one by one / form"):
        table.add_column(column, justify="left" if column in ("recipe", "form") else "right", no_wrap=True)
    figures = {}
    for name, recipe in RECIPES.items():
        found = figures[name] = measure(recipe, options.cells, torch.device(options.device))
        for form, seconds in found.items():
            table.add_row(name, form, f"{1e3 * seconds:.1f}", f"{found['one by one'] / seconds:.2f}")
    Console().print(table)
    out = Path(__file__).parent / "results" / f"stacked-{options.device}.json"
    out.write_text(json.dumps({"cells": options.cells, "seconds": figures, "machine": collect()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
