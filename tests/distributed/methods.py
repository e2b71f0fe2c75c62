"""Every method on workers' rows of global batches that the loader makes, and the same in one process; float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from simlap import rng
from simlap.config import Experiment
from simlap.data.batch import Batch
from simlap.data.loader import TrainLoader
from simlap.data.source import ImageSet
from simlap.methods import Method, build_method, pair_kind
from simlap.methods.base import StepOutput
from simlap.train.distributed import convert_sync_batchnorm
from simlap.train.world import World
from tests.tiny import tiny, tiny_method

NUM_CLASSES, IMAGES_PER_CLASS, BATCH, STEPS = 8, 6, 14, 3
PK = {"kind": "pk", "classes": 7, "images": 2}
MLP = {"embedding_dim": 8, "hidden_dim": 16}
GATES: dict[str, dict[str, Any]] = {
    "open": {"kind": "open"},
    "sigmoid": {"kind": "sigmoid", **MLP},
    "product": {"kind": "product", **MLP},
    "logistic": {"kind": "gumbel", **MLP},
    "hard gumbel": {"kind": "gumbel", "noise": "gumbel", "hard": True, **MLP},
    "stochastic": {"kind": "stochastic", "regulariser": 0.01, **MLP},
}


def _cases() -> dict[str, Experiment]:
    common: dict[str, Any] = {"train__batch_size": BATCH}
    cases = {}
    for name, gate in GATES.items():
        cases[f"simlap, {name}, cosine"] = tiny(method__gate=gate, **common)
        cases[f"simlap, {name}, masked dot, views"] = tiny(
            method__gate=gate,
            method__similarity="masked_dot",
            method__keep_self=False,
            method__gate_penalty=0.1,
            data__augment__views=2,
            **common,
        )
    cases["simlap, joint probe, learnt temperature, distinct, repeated"] = tiny(
        method__probe="joint",
        method__learn_temperature=True,
        method__pairs="distinct",
        data__repeated_augmentation=3,
        **common,
    )
    cases["simlap, pk"] = tiny(data__sampling=PK, **common)
    for variant in ("supcon", "khosla", "one_to_one"):
        for pairs in ("identical", "arbitrary", "distinct"):
            cases[f"{variant}, {pairs}, pk"] = tiny_method(variant, method__pairs=pairs, data__sampling=PK, **common)
    cases["supcon, without self, learnt temperature"] = tiny_method(
        "supcon", method__keep_self=False, method__learn_temperature=True, **common
    )
    cases["khosla, views"] = tiny_method("khosla", method__learn_temperature=True, data__augment__views=2, **common)
    cases["one_to_one, pk, views"] = tiny_method(
        "one_to_one", method__learn_temperature=True, data__sampling=PK, data__augment__views=2, **common
    )
    cases["simclr"] = tiny_method("simclr", method__learn_temperature=True, **common)
    cases["simclr, 3 views, pk"] = tiny_method("simclr", data__augment__views=3, data__sampling=PK, **common)
    cases["supervised, dropout"] = tiny_method("supervised", method__dropout=0.3, **common)
    cases["supervised, mixup"] = tiny_method("supervised", data__augment__mixup=0.8, **common)
    cases["supervised, cutmix, pk, views"] = tiny_method(
        "supervised", data__augment__cutmix=1.0, data__augment__views=2, data__sampling=PK, **common
    )
    cases["fuse"] = tiny_method("fuse", **common)
    cases["fuse, noisy gates, pk"] = tiny_method(
        "fuse", method__gate=GATES["logistic"], method__gate_penalty=0.1, data__sampling=PK, **common
    )
    ring: dict[str, Any] = {"train__keys": "ring", **common}
    cases["simlap, ring, learnt temperature, views"] = tiny(
        method__gate=GATES["stochastic"],
        method__learn_temperature=True,
        method__keep_self=False,
        data__augment__views=2,
        **ring,
    )
    cases["simlap, ring, masked dot"] = tiny(method__gate=GATES["sigmoid"], method__similarity="masked_dot", **ring)
    cases["fuse, ring"] = tiny_method("fuse", **ring)
    return cases


CASES = _cases()


def images() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    size = NUM_CLASSES * IMAGES_PER_CLASS
    pixels = torch.randint(0, 256, (size, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(size) % NUM_CLASSES)


def run(experiment: Experiment, world: World) -> dict[str, Any]:
    """Metrics and gradients of the first batch, and the state after a few steps."""
    method = build_method(experiment, num_classes=NUM_CLASSES, channels=1, world=world).double().train()
    call: Any = method
    if world.size > 1:
        convert_sync_batchnorm(method)
        call = DistributedDataParallel(method, forward_sync_buffers=False)
    loader = TrainLoader(
        images(),
        data=experiment.data,
        mean=(0.5,),
        std=(0.3,),
        num_classes=NUM_CLASSES,
        batch_size=BATCH,
        pairs=pair_kind(experiment),
        seed=experiment.seed,
        rank=world.rank,
        world_size=world.size,
    )
    found: dict[str, Any] = {}
    for step, batch in zip(range(STEPS), loader.batches(0), strict=False):
        output, gradients = step_of(call, method, batch, step)
        if step == 0:
            found = {"loss": output.loss.detach(), "metrics": output.metrics, "gradients": gradients}
        with torch.no_grad():  # an optimiser would import torch's compiler, for seconds in every process
            for name, p in method.named_parameters():
                p.sub_(gradients[name], alpha=0.05)
    return {**found, "state": {name: x.clone() for name, x in method.state_dict().items()}}


def step_of(call: Any, method: Method, batch: Batch, step: int) -> tuple[StepOutput, dict[str, Tensor]]:
    noise = method.draw_noise(batch.global_size, rng.generator(0, "gate", 0, step))
    method.zero_grad(set_to_none=True)
    output: StepOutput = call(
        batch.with_images(batch.images.double()), None if noise is None else noise[batch.rows].double()
    )
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def work() -> dict[str, dict[str, Any]]:
    """All cases in the world that this process is in."""
    return {name: run(experiment, World.current()) for name, experiment in CASES.items()}
