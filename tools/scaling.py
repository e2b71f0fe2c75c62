"""What a run costs on many GPUs: a small model of compute, exchange, checkpoints and failures. docs/scaling.md shows its tables.

Plain arithmetic, without torch. What the networks are made of is written here and compared with the networks themselves by
tests/unit/tools/test_scaling_model.py. Symbols: W GPUs, b rows a step of each, N = W b keys, D embedding width, P parameters.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
FLOAT = 4
"""Bytes of a float32: parameters, gradients, Adam's moments, and the keys (layer norm's output under autocast on CUDA)."""


@dataclass(frozen=True)
class Hardware:
    """A node of H200s on InfiniBand. Data sheets' figures, and what is assumed of them; nothing of this is measured here."""

    gpus: int = 8
    """In a node."""
    bf16_flops: float = 989e12
    """Dense tensor-core peak of one GPU, FLOP/s (NVIDIA's data sheets of H100 SXM and H200)."""
    float32_flops: float = 67e12
    """Peak outside the tensor cores, FLOP/s (the same): the loss is computed in float32."""
    loss_utilisation: float = 0.4
    """Of that peak, which the loss's products reach (assumed)."""
    memory_bytes: float = 141e9
    """Of one GPU (H200's data sheet; H100: 80e9)."""
    memory_rate: float = 4.8e12
    """Bytes/s of its memory (H200's data sheet; H100: 3.35e12)."""
    nvlink_rate: float = 450e9
    """Bytes/s each way of one GPU inside the node (900e9 in both directions, the same data sheets)."""
    network_rate: float = 50e9
    """Bytes/s each way of one GPU's adapter: 400 Gb/s."""
    link_efficiency: float = 0.7
    """Of both rates, which a collective reaches (assumed)."""
    collective_s: float = 40e-6
    """Of one small collective, seconds (assumed)."""
    message_s: float = 10e-6
    """Of one small message to a neighbour, seconds (assumed)."""
    copy_rate: float = 25e9
    """Bytes/s from a GPU to main memory (assumed; PCIe 5 x16 has 64e9)."""
    storage_rate: float = 1e9
    """Bytes/s at which one process writes to shared storage (assumed)."""
    node_mtbf_s: float = 54 * 86400 * 2048 / 419
    """Between two failures of a node: 419 interruptions in 54 days of 2,048 nodes (arXiv 2407.21783, section 3.3.4)."""
    restart_s: float = 120.0
    """From a failure to training again: the limit that two nodes on this machine have to keep, not a figure of a cluster."""


@dataclass(frozen=True)
class Recipe:
    """A run: network and schedule. Counts are those of the modules that `simlap` builds."""

    name: str
    flops: float
    """Of the backbone, forward and backward, for one image; a multiplication and an addition are two."""
    parameters: int
    """Of the whole method: backbone, projector, filter, probe."""
    buffer_bytes: int
    norms: tuple[int, ...]
    """Features of each batch norm: one gather and one sum of statistics each, in every step."""
    images: int
    """Training images, each of them `repeats` times in an epoch."""
    repeats: int
    epochs: int
    batch: int
    """Of all workers."""
    dim: int
    states: int
    """Tensors like the parameters in a checkpoint: themselves, two moments of Adam, and with a moving average one more."""

    @property
    def rows(self) -> int:
        """Augmented images of the whole run; partial batches are dropped."""
        return self.steps_per_epoch(self.batch) * self.batch * self.epochs

    def steps_per_epoch(self, batch: int) -> int:
        return self.images * self.repeats // batch


IMAGENET = 1_281_167 - round(0.01 * 1_281_167)
"""Training images beside a validation part of 1 %."""
VIT_B = Recipe(
    "ViT-B/16, ImageNet, 90 epochs",
    105.147150336e9,
    89_974_248,
    28_696,
    (2048, 512, 1024),
    IMAGENET,
    3,
    90,
    1024,
    256,
    4,
)
VIT_S = Recipe(
    "ViT-S/16, a quarter of ImageNet, 100 epochs",
    27.47538432e9,
    24_670_824,
    28_696,
    (2048, 512, 1024),
    IMAGENET // 4,
    3,
    100,
    1024,
    256,
    4,
)
RESNET = Recipe("ResNet-18, CIFAR-10, 50 epochs", 1.302528e9, 13_705_546, 69_328, (), 50_000, 3, 50, 256, 256, 3)
SMALL = Recipe("the small ResNet, CIFAR-10", 0.03465216e9, 2_098_618, 28_296, (), 9_000, 1, 10, 128, 128, 3)


# --- one step --------------------------------------------------------------------------------------------------------


def loss_flops(rows: int, keys: int, dim: int, *, ring: bool = False) -> float:
    """Of the loss with a gate per anchor, value and gradients: six products of rows x keys x dim, ten in a ring."""
    return (10 if ring else 6) * 2.0 * rows * keys * dim


def key_bytes(rows: int, workers: int, dim: int, *, ring: bool = False) -> int:
    """What one worker receives of keys and their gradients in a step.

    Gathered: the others' keys, and from each of them its part of the gradient of the own ones, which is as much. In a ring the
    keys go round three times, and the gradients once, back to whose they are.
    """
    share = rows * dim * FLOAT
    return share * (4 if ring else 2) * (workers - 1)


def gradient_bytes(parameters: int, workers: int) -> float:
    """What one worker sends in an all-reduce of its gradients that sends the least: 2 (W - 1) / W times their size."""
    return 2 * (workers - 1) / workers * parameters * FLOAT


def norm_bytes(norms: tuple[int, ...], workers: int) -> int:
    """What one worker receives of statistics: (mean, deviation, count) of each other one, and a sum of two vectors back."""
    if workers == 1:
        return 0
    return sum((workers - 1) * (2 * features + 1) * FLOAT + 2 * 2 * features * FLOAT for features in norms)


@dataclass(frozen=True)
class Step:
    """Seconds of one step, by what they go to."""

    backbone: float
    loss: float
    keys: float
    gradients: float
    """Of the all-reduce, whether hidden or not."""
    norms: float

    @property
    def exposed(self) -> float:
        """Of the all-reduce behind the backward pass: DDP sends while that runs, which is two thirds of the backbone's time."""
        return max(0.0, self.gradients - 2 / 3 * self.backbone)

    @property
    def seconds(self) -> float:
        return self.backbone + self.loss + self.keys + self.exposed + self.norms

    @property
    def efficiency(self) -> float:
        """Share of the time in which the backbone is computed."""
        return self.backbone / self.seconds


def step(
    recipe: Recipe,
    workers: int,
    batch: int,
    utilisation: float,
    *,
    ring: bool = False,
    hardware: Hardware | None = None,
) -> Step:
    """One step of `batch` rows on `workers` GPUs.

    Args:
        recipe: what is trained.
        workers: W; full nodes, or a part of one.
        batch: rows of all workers.
        utilisation: share of the bf16 peak that the backbone reaches (model FLOPs utilisation).
        ring: keys go round instead of being gathered.
        hardware: default: an H200 node.

    Raises:
        ValueError: workers that do not share the batch evenly, or fill a node and a part of one.
    """
    hw = hardware or Hardware()
    if workers < 1 or batch % workers:
        raise ValueError(f"{batch} rows cannot be shared evenly by {workers} workers")
    if workers > hw.gpus and workers % hw.gpus:
        raise ValueError(f"{workers} workers are no whole number of nodes of {hw.gpus}")
    rows, nodes = batch // workers, max(1, workers // hw.gpus)
    inside, outside = hw.nvlink_rate * hw.link_efficiency, hw.network_rate * hw.link_efficiency
    loss = loss_flops(rows, batch, recipe.dim, ring=ring) / (hw.float32_flops * hw.loss_utilisation)
    backbone = rows * recipe.flops / (hw.bf16_flops * utilisation)
    if workers == 1:
        return Step(backbone, loss, 0.0, 0.0, 0.0)
    # inside the nodes first, then between them, where each adapter of a node carries its part of the sum
    gradients = gradient_bytes(recipe.parameters, min(workers, hw.gpus)) / inside
    gradients += gradient_bytes(recipe.parameters, nodes) / hw.gpus / outside
    share = rows * recipe.dim * FLOAT
    near = share * (min(workers, hw.gpus) - 1)
    far = share * (workers - hw.gpus) if nodes > 1 else 0
    if ring:  # one after the other: each waits for its neighbour
        slowest = outside if nodes > 1 else inside
        keys = 4 * (workers - 1) * (hw.message_s + share / slowest)
    else:  # gathered through all adapters of a node, the gradients by each GPU's own
        keys = 2 * (hw.collective_s + near / inside) + far / hw.gpus / outside + far / outside
    statistics = norm_bytes(recipe.norms, workers) / (outside if nodes > 1 else inside)
    return Step(backbone, loss, keys, gradients, 2 * len(recipe.norms) * hw.collective_s + statistics)


def run_seconds(recipe: Recipe, workers: int, batch: int, utilisation: float) -> float:
    """Of a whole run without failures, evaluation, start-up and waiting for images."""
    return recipe.steps_per_epoch(batch) * recipe.epochs * step(recipe, workers, batch, utilisation).seconds


# --- checkpoints and failures ----------------------------------------------------------------------------------------


def checkpoint_bytes(recipe: Recipe) -> int:
    """Of the tensors in a checkpoint: parameters, moments, moving average, and buffers with each copy of the module."""
    averages = recipe.states - 3
    return recipe.states * recipe.parameters * FLOAT + (1 + averages) * recipe.buffer_bytes


def young(cost: float, mtbf: float) -> float:
    """Seconds between checkpoints that lose the least, to first order (Young, CACM 17(9), 1974)."""
    return math.sqrt(2 * cost * mtbf)


def daly(cost: float, mtbf: float) -> float:
    """The same to higher order (Daly, FGCS 22(3), 2006): computing time between two checkpoints."""
    if cost >= 2 * mtbf:
        return mtbf
    share = cost / (2 * mtbf)
    return math.sqrt(2 * cost * mtbf) * (1 + math.sqrt(share) / 3 + share / 9) - cost


@dataclass(frozen=True)
class Faults:
    """Of a run, expected values."""

    number: float
    lost_s: float
    """Redone, and waited for until training runs again: seconds of all workers of the run."""
    stall_s: float
    """Waited for checkpoints' copies."""


def faults(seconds: float, nodes: float, interval: float, stall: float, hardware: Hardware | None = None) -> Faults:
    """What a run of so many seconds has to expect: each failure loses half an interval and a restart.

    Args:
        seconds: of the run without failures.
        nodes: which it runs on; a part of a node counts as that part.
        interval: seconds between checkpoints; half of the run at most is lost.
        stall: seconds that training waits for a checkpoint.
        hardware: default: an H200 node.
    """
    hw = hardware or Hardware()
    rate = nodes / hw.node_mtbf_s
    loss = min(interval, seconds) / 2 + hw.restart_s
    number = rate * seconds / max(1e-9, 1 - rate * loss)  # what is redone can fail too
    return Faults(number, number * loss, stall * seconds / interval)


# --- studies ---------------------------------------------------------------------------------------------------------


def study_seconds(cells: int, gpus: int, per_cell: int, cell_seconds: float) -> float:
    """Cells side by side on `per_cell` GPUs each, in as many rounds as it takes."""
    return math.ceil(cells / (gpus // per_cell)) * cell_seconds


# --- what is measured here -------------------------------------------------------------------------------------------


def measured(name: str) -> dict[str, object]:
    """A committed benchmark's figures."""
    found: dict[str, object] = json.loads((RESULTS / f"{name}-cpu.json").read_text())
    return found


def at(tree: object, *keys: str) -> float:
    """A number inside one. Raises KeyError with the keys where it is none."""
    for key in keys:
        if not isinstance(tree, dict) or key not in tree:
            raise KeyError(" / ".join(keys))
        tree = tree[key]
    if not isinstance(tree, int | float):
        raise KeyError(" / ".join(keys))
    return float(tree)


def cpu_images_per_s(recipe: Recipe, augment_us: float, backbone_flops: float, optimiser_rate: float) -> float:
    """One core's: the backbone at its FLOP rate, augmentation, and Adam's seven passes over the parameters.

    Args:
        recipe: its own batch.
        augment_us: microseconds an image, as measured.
        backbone_flops: FLOP/s.
        optimiser_rate: bytes/s.
    """
    adam = 7 * FLOAT * recipe.parameters / optimiser_rate / recipe.batch
    return 1 / (recipe.flops / backbone_flops + augment_us * 1e-6 + adam)


def calibrated_flops(recipe: Recipe, images_per_s: float, augment_us: float, optimiser_rate: float) -> float:
    """FLOP/s of the backbone with which `cpu_images_per_s` gives what was measured."""
    adam = 7 * FLOAT * recipe.parameters / optimiser_rate / recipe.batch
    return recipe.flops / (1 / images_per_s - augment_us * 1e-6 - adam)
