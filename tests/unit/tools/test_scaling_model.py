"""The model of tools/scaling.py against the modules, a written checkpoint, torch's counter and committed measurements."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from simlap.config import load_experiment
from simlap.losses import subspace_info_nce
from simlap.methods.base import Method
from simlap.methods.build import build_method
from simlap.storage import Storage
from simlap.train.checkpoint import Checkpoint, CheckpointStore, optimizer_tensors
from simlap.train.world import World
from tools import scaling as model
from tools import scaling_page as page
from tools.scaling import RESNET, SMALL, VIT_B, VIT_S, Recipe

ROOT = Path(__file__).resolve().parents[3]
EXPERIMENTS = {
    "vit_b": (VIT_B, "imagenet_vit_s16", ["backbone.name=vit_base_patch16_224"]),
    "vit_s": (VIT_S, "imagenet_vit_s16", []),
    "resnet": (RESNET, "cifar10_resnet18", []),
    "small": (SMALL, "cifar10_resnet18_small", []),
}


def built(name: str, device: str = "meta") -> tuple[Recipe, Method, int]:
    recipe, file, changes = EXPERIMENTS[name]
    experiment = load_experiment(ROOT / "experiments" / f"{file}.yaml", changes)
    size = experiment.data.image_size
    with torch.device(device):
        classes = 1000 if size == 224 else 10
        return recipe, build_method(experiment, num_classes=classes, channels=3, world=World()), size


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_counts_are_those_of_the_modules(name: str) -> None:
    recipe, method, size = built(name)
    with FlopCounterMode(display=False) as counter:
        method.backbone(torch.empty(2, 3, size, size, device="meta")).sum().backward()
    assert counter.get_total_flops() / 2 == pytest.approx(recipe.flops, rel=1e-9)
    assert sum(parameter.numel() for parameter in method.parameters()) == recipe.parameters
    assert sum(buffer.nbytes for buffer in method.buffers()) == recipe.buffer_bytes
    norms = [module.num_features for module in method.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if size == 224:  # of the others the model exchanges nothing
        assert sorted(norms) == sorted(recipe.norms)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_schedules_are_those_of_the_experiments(name: str) -> None:
    recipe, file, changes = EXPERIMENTS[name]
    experiment = load_experiment(ROOT / "experiments" / f"{file}.yaml", changes)
    assert (recipe.batch, recipe.repeats) == (experiment.train.batch_size, experiment.data.repeated_augmentation)
    assert recipe.dim == experiment.method.embed_dim  # type: ignore[union-attr]
    assert recipe.states == (4 if experiment.train.ema_decay is not None else 3)
    if name != "vit_b":
        assert recipe.epochs == experiment.train.epochs


def test_bytes_of_a_written_checkpoint(tmp_path: Path) -> None:
    _, method, _ = built("small", "cpu")
    optimizer = torch.optim.Adam(method.parameters())
    for parameter in method.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    tensors, _ = optimizer_tensors(optimizer.state_dict())
    CheckpointStore(Storage(tmp_path)).save(Checkpoint(1, 0, method.state_dict(), tensors, {}))
    written = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    expected = model.checkpoint_bytes(SMALL)
    assert expected < written < expected * 1.005  # names, shapes, and Adam's step counters


def test_products_of_the_loss() -> None:
    rows, keys, dim = 16, 48, 8
    z, k, gates = torch.randn(rows, dim), torch.randn(keys, dim), torch.rand(rows, dim)
    for x in (z, k, gates):
        x.requires_grad_()
    labels, pairs, key_labels = (torch.arange(n) % 4 for n in (rows, rows, keys))
    with FlopCounterMode(display=False) as counter:
        subspace_info_nce(z, k, gates, labels, pairs.roll(1), key_labels, form="plain").backward()
    assert counter.get_total_flops() == model.loss_flops(rows, keys, dim)


def test_throughput_of_the_other_recipe() -> None:
    found = page.cpu_rates()
    assert 1 / 2 < found["predicted small"] / found["measured small"] < 2


def test_the_page_is_the_models() -> None:
    text = page.PAGE.read_text()
    assert text == page.filled(text), "run python -m tools.scaling_page --write"
    assert set(page.TABLES) == {match[1] for match in page._BLOCK.finditer(text)}


def test_a_changed_table_is_found() -> None:
    text = page.PAGE.read_text()
    changed = text.replace("6,335", "9,999", 1)
    assert changed != text
    assert page.filled(changed) == text


def test_bytes_exchanged() -> None:
    assert model.key_bytes(128, 1, 256) == model.key_bytes(128, 1, 256, ring=True) == 0
    assert model.key_bytes(128, 8, 256) == 2 * 7 * 128 * 256 * 4
    assert model.key_bytes(128, 8, 256, ring=True) == 4 * 7 * 128 * 256 * 4
    assert model.gradient_bytes(1000, 1) == 0
    assert model.gradient_bytes(1000, 8) == 7000
    assert model.norm_bytes((10,), 1) == 0


@pytest.mark.parametrize(("workers", "batch"), [(0, 8), (3, 8), (12, 24)])
def test_impossible_worlds_are_refused(workers: int, batch: int) -> None:
    with pytest.raises(ValueError, match="workers"):
        model.step(VIT_B, workers, batch, 0.4)


def test_the_intervals_lose_least() -> None:
    cost, mtbf = 10.0, 5000.0

    def lost(interval: float) -> float:  # Daly's expected time for a unit of work, without restarts
        return mtbf * math.expm1((interval + cost) / mtbf) / interval

    best = min((interval / 10 for interval in range(500, 10_000)), key=lost)
    assert model.daly(cost, mtbf) == pytest.approx(best, rel=0.01)
    assert model.young(cost, mtbf) == pytest.approx(best, rel=0.1)


def test_failures_grow_with_nodes_and_time() -> None:
    one, twice = (model.faults(3600.0, nodes, 600.0, 0.1) for nodes in (1, 2))
    assert twice.number == pytest.approx(2 * one.number, rel=1e-3)
    assert one.lost_s == pytest.approx(one.number * (300 + model.Hardware().restart_s))
    assert one.stall_s == pytest.approx(0.6)


def test_studies_run_in_rounds() -> None:
    assert model.study_seconds(500, 512, 8, 10.0) == 80.0
    assert model.study_seconds(500, 512, 512, 10.0) == 5000.0
