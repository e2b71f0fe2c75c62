"""The schedule against timm's, which parameters decay, the layers, timm's factory, and state that survives a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.optim._optim_factory import list_optimizers
from timm.optim._param_groups import param_groups_layer_decay
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from simlap.config.schema import Optim
from simlap.errors import ConfigError
from simlap.nn.backbone import Conv3
from simlap.storage import Storage
from simlap.train.checkpoint import Checkpoint, CheckpointStore, optimizer_state_dict, optimizer_tensors
from simlap.train.optim import build_optimizer, layer_scales, learning_rate, set_learning_rate


class Model(nn.Module):
    """A backbone with heads, as methods have them."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone, self.probe, self.labels = backbone, nn.Linear(width, 3), nn.Embedding(4, 5)


def optim(**settings: Any) -> Optim:
    return Optim.model_validate(settings)


def small() -> Model:
    torch.manual_seed(0)
    return Model(Conv3(1, (4, 6)), 6)


def train(model: Model, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)  # some optimisers draw; the training step seeds by its key
        h = model.backbone(torch.randn(6, 1, 8, 8))
        loss = model.probe(h).square().sum() + model.labels(torch.tensor([0, 3])).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("warmup", [0.0, 2.0])
def test_schedule_is_timms_without_prefix(warmup: float) -> None:
    config = optim(lr=0.1, warmup_epochs=warmup, warmup_lr=1e-6, min_lr=1e-5)
    steps, epochs = 7, 9
    reference = CosineLRScheduler(
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr),
        t_initial=steps * epochs,
        lr_min=config.min_lr,
        warmup_t=int(warmup * steps),
        warmup_lr_init=config.warmup_lr,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    for step in range(steps * epochs):
        reference.step_update(step)
        expected = reference.optimizer.param_groups[0]["lr"]
        assert learning_rate(config, step, steps_per_epoch=steps, epochs=epochs) == pytest.approx(expected, rel=1e-9)


def test_constant_after_warmup() -> None:
    config = optim(lr=0.1, schedule="constant", warmup_epochs=1.0, warmup_lr=0.0)
    rates = [learning_rate(config, step, steps_per_epoch=4, epochs=3) for step in range(12)]
    assert rates == pytest.approx([0.0, 0.025, 0.05, 0.075] + [0.1] * 8)


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_torchs_own_optimisers_bit_for_bit(name: str, kind: Any, momentum: float) -> None:
    config = optim(name=name, lr=0.01, weight_decay=0.25, momentum=momentum)
    model, twin = small(), small()
    optimizer = build_optimizer(model, config)
    groups = [
        {"params": [p for p in twin.parameters() if p.ndim > 1], "weight_decay": 0.25},
        {"params": [p for p in twin.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    more: dict[str, Any] = {"momentum": momentum, "nesterov": momentum > 0} if name == "sgd" else {}
    expected: torch.optim.Optimizer = kind(groups, lr=0.01, fused=True, **more)
    train(model, optimizer, range(3))
    train(twin, expected, range(3))
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert isinstance(optimizer, kind)
    saved, wanted = optimizer.state_dict(), expected.state_dict()
    assert saved["param_groups"] == wanted["param_groups"]
    assert saved["state"].keys() == wanted["state"].keys()


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lamb", "lars", "muon"])
def test_no_decay_on_vectors_and_decay_on_embeddings(name: str) -> None:
    model = small()
    optimizer = build_optimizer(model, optim(name=name, weight_decay=0.25))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.25 if parameter.ndim > 1 else 0.0)


def test_parameters_without_gradient_are_left_alone() -> None:
    model = small()
    model.probe.requires_grad_(False)
    optimizer = build_optimizer(model, optim())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_muon_is_for_matrices_that_map() -> None:
    model = Model(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, depth=1), 192)
    optimizer = build_optimizer(model, optim(name="muon"))
    fallback = {
        name
        for name, p in model.named_parameters()
        for group in optimizer.param_groups
        if group["use_fallback"] and any(p is q for q in group["params"])
    }
    assert fallback == {"labels.weight", "backbone.pos_embed", "backbone.cls_token"}


# --- layers ----------------------------------------------------------------------------------------------------------


def test_resnet18_has_the_authors_ten_layers() -> None:
    model = Model(timm.create_model("resnet18", num_classes=0, stem_type="deep", output_stride=8), 512)
    scales = layer_scales(model, 0.65)
    assert set(scales) == {name for name, _ in model.named_parameters()}
    order = ["backbone.conv1.0.weight"]
    order += [f"backbone.layer{i}.{j}.conv1.weight" for i in range(1, 5) for j in range(2)]
    order += ["probe.weight"]
    assert [scales[name] for name in order] == pytest.approx([0.65 ** (9 - i) for i in range(10)])
    assert scales["backbone.bn1.weight"] == scales["backbone.conv1.3.weight"] == scales[order[0]]
    assert scales["backbone.layer2.0.downsample.0.weight"] == scales["backbone.layer2.0.conv2.weight"]
    assert scales["labels.weight"] == scales["probe.bias"] == 1.0


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"])
def test_layers_are_those_of_timms_own_layer_decay(name: str) -> None:
    with torch.device("meta"):
        whole = timm.create_model(name, num_classes=5)
        model = Model(timm.create_model(name, num_classes=0), 1)
    scale_of = {
        id(p): group["lr_scale"] for group in param_groups_layer_decay(whole, layer_decay=0.5) for p in group["params"]
    }
    expected = {f"backbone.{n}": scale_of[id(p)] for n, p in whole.named_parameters()}
    scales = layer_scales(model, 0.5)
    for n, _ in model.backbone.named_parameters():
        assert scales[f"backbone.{n}"] == pytest.approx(expected[f"backbone.{n}"]), n


def test_without_a_matcher_children_are_layers_and_norms_belong_to_the_one_before() -> None:
    model = Model(Conv3(1, (4, 6, 8)), 8)
    scales = layer_scales(model, 0.5)
    found = [scales[f"backbone.{i}.weight"] for i in (0, 1, 3, 4, 6, 7)]
    assert found == [0.125, 0.125, 0.25, 0.25, 0.5, 0.5]
    assert scales["probe.weight"] == 1.0


def test_groups_learn_at_their_share_of_the_rate() -> None:
    model = Model(Conv3(1, (4, 6)), 6)
    optimizer = build_optimizer(model, optim(layer_decay=0.5, weight_decay=0.1))
    set_learning_rate(optimizer, 0.4)
    scales = layer_scales(model, 0.5)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = next(n for n, p in model.named_parameters() if p is parameter)
            assert group["lr"] == pytest.approx(0.4 * scales[name])
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


@given(decay=st.floats(0.1, 0.99), widths=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_no_layer_learns_faster_than_one_above_it(decay: float, widths: list[int]) -> None:
    model = Model(Conv3(1, widths), widths[-1])
    scales = [scale for name, scale in layer_scales(model, decay).items() if name.startswith("backbone.")]
    assert scales == sorted(scales)
    assert max(scales) == pytest.approx(decay)
    assert min(scales) == pytest.approx(decay ** len(widths))


# --- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "key", "value", "words"),
    [
        ({"name": "adamm"}, "optim.name", "adamm", ["unknown optimiser", "did you mean 'adam'", "list_optimizers"]),
        ({"name": "Adam"}, "optim.name", "Adam", ["adam"]),
        ({"name": "adahessian"}, "optim.name", "adahessian", ["second derivatives"]),
        ({"name": "bnbadam"}, "optim.name", "bnbadam", ["cannot be built"]),
        ({"kwargs": {"betta": 1}}, "optim.kwargs", {"betta": 1}, ["adam cannot be built", "betta"]),
        ({"kwargs": {"betas": [2, 3]}}, "optim.kwargs", {"betas": [2, 3]}, ["beta"]),
        ({"name": "sgd", "kwargs": {"eps": 0.1}}, "optim.kwargs.eps", 0.1, ["sgd has no eps", "dampening"]),
        ({"kwargs": {"lr": 0.1}}, "optim.kwargs.lr", 0.1, ["optim.lr"]),
        ({"kwargs": {"layer_decay": 0.1}}, "optim.kwargs.layer_decay", 0.1, ["no argument of an optimiser"]),
        ({"kwargs": {"weight_decay": 0.1}}, "optim.kwargs.weight_decay", 0.1, ["optim.weight_decay"]),
        ({"name": "sgd", "kwargs": {"momentum": 0.1}}, "optim.kwargs.momentum", 0.1, ["optim.momentum"]),
    ],
)
def test_wrong_optimisers(settings: dict[str, Any], key: str, value: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        build_optimizer(small(), optim(**settings))
    assert (raised.value.key, raised.value.value) == (key, value)
    for word in words:
        assert word in str(raised.value)


def test_arguments_reach_the_optimiser() -> None:
    optimizer = build_optimizer(small(), optim(kwargs={"betas": [0.8, 0.9], "eps": 1e-3}))
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["eps"] == 1e-3


# --- one kernel a step -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_one_kernel_for_all_parameters(name: str) -> None:
    """The same numbers as one operation after another, in both orders of memory: the kernel does not look at strides."""
    models = []
    for fused, order in ((None, torch.channels_last), (False, torch.contiguous_format), (False, torch.channels_last)):
        model = small().to(memory_format=order)
        kwargs = {} if fused is None else {"fused": fused}
        optimizer = build_optimizer(model, optim(name=name, lr=0.01, weight_decay=0.1, kwargs=kwargs))
        assert [group["fused"] for group in optimizer.param_groups] == [fused is None] * len(optimizer.param_groups)
        train(model, optimizer, range(4))
        models.append(model)
    for mine, *others in zip(*(model.parameters() for model in models), strict=True):
        for other in others:
            assert torch.allclose(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "kwargs", [{"foreach": True}, {"capturable": True}, {"differentiable": True}, {"fused": False}]
)
def test_another_choice_is_respected(kwargs: dict[str, bool]) -> None:
    optimizer = build_optimizer(small(), optim(name="adam", kwargs=kwargs))
    assert not any(group["fused"] for group in optimizer.param_groups)


# --- state in checkpoints --------------------------------------------------------------------------------------------

OFTEN = ["sgd", "adam", "adamw", "lamb", "muon", "lars", "lion", "adafactor"]
NAMES = [str(name) for name in list_optimizers()]
NOT_HERE = [n for n in NAMES if n.startswith(("bnb", "fused"))] + ["adahessian"]


@pytest.fixture(autouse=True)
def _eager() -> Iterator[None]:
    """kron compiles itself, for minutes."""
    with torch.compiler.set_stance("force_eager"):
        yield


def assert_resumes(name: str, folder: Path) -> None:
    config = optim(name=name, lr=0.01, weight_decay=0.01)
    model = small()
    optimizer = build_optimizer(model, config)
    train(model, optimizer, range(3))
    tensors, rest = optimizer_tensors(optimizer.state_dict())
    store = CheckpointStore(Storage(folder))
    store.save(Checkpoint(1, 0, copy.deepcopy(model).state_dict(), tensors, rest))
    train(model, optimizer, range(3, 6))
    loaded = store.newest()
    assert loaded is not None
    twin = small()
    twin.load_state_dict(loaded.model)
    other = build_optimizer(twin, config)
    other.load_state_dict(optimizer_state_dict(loaded.optimizer, loaded.state))
    train(twin, other, range(3, 6))
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    again, again_rest = optimizer_tensors(other.state_dict())
    last, last_rest = optimizer_tensors(optimizer.state_dict())
    assert again_rest == last_rest
    assert again.keys() == last.keys()
    assert all(torch.equal(again[key], last[key]) for key in last)


@pytest.mark.parametrize("name", OFTEN)
def test_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    assert_resumes(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(OFTEN) - set(NOT_HERE)))
def test_every_optimiser_of_timm_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    assert_resumes(name, tmp_path)
