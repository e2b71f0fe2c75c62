"""Gradient accumulation gives the gradients of the plain step, in one process and on two workers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from simlap.data.batch import Batch
from simlap.data.splits import Splits, load_splits
from simlap.train.accumulate import average_gradients
from simlap.train.optim import set_learning_rate
from simlap.train.step import TrainState, build, gradients, train_step
from simlap.train.world import World
from tests.distributed.spawn import run_workers
from tests.tiny import tiny

VIT = {"name": "vit_tiny_patch16_224", "kwargs": {"patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 2}}
CONV = {"name": "conv3", "kwargs": {"widths": [4, 8]}}
SMALL = {"embed_dim": 8, "projector_hidden_dim": 8}
METHODS: dict[str, dict[str, Any]] = {
    "simlap": {"method": {"kind": "simlap", **SMALL, "gate": {"kind": "gumbel", "embedding_dim": 4, "hidden_dim": 8}}},
    "joint probe": {"method": {"kind": "simlap", **SMALL, "gate": {"kind": "open"}, "probe": "joint"}},
    "supcon": {"method": {"kind": "supcon", "variant": "khosla", **SMALL}},
    "one to one": {
        "method": {"kind": "supcon", "variant": "one_to_one", **SMALL},
        "data.sampling": {"kind": "pk", "classes": 5, "images": 2},
        "train.batch_size": 10,
    },
    "simclr": {"method": {"kind": "simclr", **SMALL}, "data.augment.views": 2},
    "supervised": {"method": {"kind": "supervised", "dropout": 0.2}, "data.augment.mixup": 0.8},
    "fuse": {"method": {"kind": "fuse", **SMALL}},
}


def experiment(method: str = "simlap", micro: int | None = None, **changes: Any) -> Any:
    tree: dict[str, Any] = {
        "train.batch_size": 12,
        "train.epochs": 1,
        "backbone": VIT,
        "data.fraction": 0.05,
        "optim.warmup_epochs": 0,
        **METHODS[method],
        "train.micro_batch_size": micro,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return tiny(**{name.replace(".", "__"): value for name, value in tree.items()})


def state(splits: Splits, world: World, *args: Any, **changes: Any) -> TrainState:
    """In float64: gradients that are 0 but for rounding hide no others."""
    torch.set_default_dtype(torch.float64)  # from the start: a data-parallel wrapper keeps the type it has found
    try:
        made = build(experiment(*args, **changes), splits, world)
    finally:
        torch.set_default_dtype(torch.float32)
    made.model.train()
    return made


def first_batch(made: TrainState) -> Batch:
    batch = next(iter(made.loader.batches(0)))
    return batch.with_images(batch.images.double())


def found(made: TrainState) -> dict[str, Tensor]:
    """Gradients of the first batch, and what the step says of it."""
    output = gradients(made, first_batch(made))
    result = {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}
    return {**result, **{f"metric {name}": value for name, value in output.metrics.items()}}


def assert_same(mine: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert mine.keys() == wanted.keys()
    for name, value in wanted.items():
        tolerance = 1e-6 if name.startswith("metric ") else 1e-10  # metrics are float32
        assert float((mine[name] - value).norm()) <= tolerance * (float(value.norm()) + 1), name


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_splits(experiment().data)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("micro", [1, 5, 11])
def test_gradients_of_the_plain_step(splits: Splits, method: str, micro: int) -> None:
    plain = found(state(splits, World(), method))
    assert_same(found(state(splits, World(), method, micro)), plain)


def test_a_frozen_batch_norm_too(splits: Splits) -> None:
    plain, parts = state(splits, World(), backbone=CONV), state(splits, World(), "simlap", 5, backbone=CONV)
    for made in (plain, parts):
        made.model.frozen_norm = True
        made.model.train()
    assert_same(found(parts), found(plain))
    for mine, before in zip(parts.model.backbone.buffers(), plain.model.backbone.buffers(), strict=True):
        assert torch.equal(mine, before)
    with_its_own = state(splits, World(), "simlap", 5, backbone={"name": "conv3", "kwargs": {"widths": [4, 8]}})
    with pytest.raises(AssertionError):
        assert_same(
            found(with_its_own), found(state(splits, World(), backbone=with_its_own.experiment.backbone.model_dump()))
        )


@pytest.mark.parametrize("micro", [12, 100])
def test_one_part_is_the_plain_step(splits: Splits, micro: int) -> None:
    """With its batch norm and without a second pass."""
    plain, one = (state(splits, World(), "simlap", m, backbone=CONV) for m in (None, micro))
    assert_same(found(one), found(plain))
    norm = one.model.backbone[1]  # type: ignore[index]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_batches_tracked == 1
    for mine, wanted in zip(one.model.backbone.buffers(), plain.model.backbone.buffers(), strict=True):
        assert torch.equal(mine, wanted)


def test_views_count_among_the_rows(splits: Splits) -> None:
    assert [state(splits, World(), "simclr", micro).parts for micro in (None, 24, 23, 12, 1)] == [1, 1, 2, 2, 24]
    assert state(splits, World(), "simlap", 12).parts == 1


def test_running_statistics_see_every_part_once(splits: Splits) -> None:
    made = state(splits, World(), "simlap", 5, backbone={"name": "conv3", "kwargs": {"widths": [4]}})
    norm = made.model.backbone[1]  # type: ignore[index]
    assert isinstance(norm, nn.BatchNorm2d)
    batch = first_batch(made)
    convolved = made.model.backbone[0](batch.images)  # type: ignore[index]
    twin = nn.BatchNorm2d(4).double()
    for part in convolved.tensor_split(3):
        twin(part)
    gradients(made, batch)
    assert norm.num_batches_tracked == 3
    assert norm.running_mean is not None
    assert torch.allclose(norm.running_mean, twin.running_mean, atol=1e-6)  # type: ignore[arg-type]
    assert torch.allclose(norm.running_var, twin.running_var, atol=1e-6)  # type: ignore[arg-type]


def test_dropout_draws_the_same_in_both_passes(splits: Splits) -> None:
    """With other draws in the second pass, the gradient would belong to another network: it would miss the difference
    quotient of the loss."""
    vit = {**VIT, "kwargs": {**VIT["kwargs"], "proj_drop_rate": 0.3, "drop_path_rate": 0.3}}  # type: ignore[dict-item]
    made = state(splits, World(), "supervised", 5, backbone=vit, data__augment__mixup=0.0)
    batch = first_batch(made)
    parameter = made.model.get_parameter("backbone.patch_embed.proj.weight")
    gradients(made, batch)
    assert parameter.grad is not None
    direction = torch.randn_like(parameter)
    slope = float((parameter.grad * direction).sum())
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.add_(direction, alpha=sign * 1e-6)
        losses.append(float(gradients(made, batch).loss.detach()))
        with torch.no_grad():
            parameter.add_(direction, alpha=-sign * 1e-6)
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(slope, rel=1e-4)


@given(sizes=st.lists(st.integers(1, 40), max_size=8), missing=st.integers(0, 8))
@settings(max_examples=20)
def test_alone_the_average_is_the_gradient(sizes: list[int], missing: int) -> None:
    parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
    for i, parameter in enumerate(parameters):
        parameter.grad = None if i == missing else torch.full_like(parameter, i)
    average_gradients(parameters, World())
    for i, parameter in enumerate(parameters):
        assert (parameter.grad is None) == (i == missing)


# --- two workers -----------------------------------------------------------------------------------------------------

CLIPPED: dict[str, Any] = {"optim__name": "sgd", "optim__clip_grad": 0.01, "train__batch_size": 13}


def work(rank: int, world_size: int, method_names: list[str]) -> dict[str, dict[str, Tensor]]:
    world = World.current()
    splits = load_splits(experiment().data)
    results = {name: found(state(splits, world, name, 3, **uneven(name))) for name in method_names}
    # one row at a time: rank 1 has a part without rows, and must not miss batch norm's meetings
    results["empty part"] = found(state(splits, world, "simlap", 1, train__batch_size=13, backbone=CONV))
    # rank 0 has 7 rows and rank 1 has 6: both take the plain step, with 7 as with more
    results["one part"] = found(state(splits, world, "simlap", 7, train__batch_size=13, backbone=CONV))
    results["trained"] = trained(state(splits, world, "simlap", 3, **CLIPPED))
    return results


def uneven(method: str) -> dict[str, Any]:
    """13 rows: one worker has 7 of them. PK batches have an odd number of classes instead."""
    return {} if method == "one to one" else {"train__batch_size": 13}


def trained(made: TrainState) -> dict[str, Tensor]:
    set_learning_rate(made.optimizer, 0.01)
    for step, batch in enumerate(itertools.islice(made.loader.batches(0), 3)):
        made.step = step
        train_step(made, batch.with_images(batch.images.double()))
    return {name: p.detach().clone() for name, p in made.model.named_parameters()}


@pytest.mark.slow
def test_two_workers(tmp_path: Path, splits: Splits) -> None:
    first, second = run_workers(work, 2, tmp_path, list(METHODS))
    for name in METHODS:
        for key in [key for key in first[name] if not key.startswith("metric ")]:
            assert torch.equal(first[name][key], second[name][key])
        summed = {k: v + second[name][k] if k.startswith("metric ") else v for k, v in first[name].items()}
        assert_same(summed, found(state(splits, World(), name, **uneven(name))))
    one = {k: v + second["one part"][k] if k.startswith("metric ") else v for k, v in first["one part"].items()}
    assert_same(one, found(state(splits, World(), train__batch_size=13, backbone=CONV)))
    wanted = trained(state(splits, World(), **CLIPPED))
    for key, value in wanted.items():
        assert torch.equal(first["trained"][key], second["trained"][key])
        assert torch.allclose(first["trained"][key], value, rtol=1e-8, atol=1e-10), key
    assert first["empty part"].keys() == second["empty part"].keys()
