"""Optimiser and schedule from the config."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from simlap.config.schema import Optim
from simlap.errors import ConfigError

Group = dict[str, Any]
_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
# arguments that settings of their own decide
_RESERVED = {"lr": "optim.lr", "weight_decay": "optim.weight_decay", "momentum": "optim.momentum", "params": None}


def build_optimizer(model: nn.Module, config: Optim) -> torch.optim.Optimizer:
    """The optimiser a config asks for, over the parameters that want a gradient.

    No decay on biases and 1-d parameters; decay on matrices and label embeddings (the authors' recipe). With
    `layer_decay` below 1 every group has an `lr_scale`, see `layer_scales` and `set_learning_rate`.

    Args:
        model: with a child `backbone`, where `layer_decay` is below 1.
        config: the experiment's `optim`.

    Raises:
        ConfigError: unknown name, or arguments that the optimiser does not take.
    """
    scales = layer_scales(model, config.layer_decay) if config.layer_decay < 1 else {}
    fallback = _vectors_by_meaning(model) if "muon" in config.name else set()
    groups: dict[tuple[float, bool, bool], Group] = {}
    # decay first: the order of the groups is part of a checkpoint
    named = sorted(((n, p) for n, p in model.named_parameters() if p.requires_grad), key=lambda item: item[1].ndim <= 1)
    for name, parameter in named:
        decay, scale = parameter.ndim > 1, scales.get(name, 1.0)
        key = (scale, decay, name in fallback)
        if key not in groups:
            groups[key] = {"params": [], "weight_decay": config.weight_decay if decay else 0.0}
            if scales:
                groups[key]["lr_scale"] = scale
            if fallback:
                groups[key]["use_fallback"] = name in fallback
        groups[key]["params"].append(parameter)
    return create_optimizer(list(groups.values()), config)


def create_optimizer(groups: Iterable[Group], config: Optim) -> torch.optim.Optimizer:
    """timm's optimiser of `config.name` over parameter groups that hold their own `weight_decay`. Raises ConfigError."""
    import timm.optim  # takes seconds

    factory: Any = timm.optim  # its names are not the same in all versions of timm, nor typed
    # versions before 1.0.12 have no list, and answer an unknown name themselves
    names: list[str] = factory.list_optimizers() if hasattr(factory, "list_optimizers") else [config.name]
    if config.name not in names:
        raise ConfigError(
            "unknown optimiser; every name in timm.optim.list_optimizers() is valid",
            key="optim.name",
            value=config.name,
            choices=difflib.get_close_matches(config.name, names, n=5, cutoff=0.4) or ["sgd", "adam", "adamw", "lamb"],
        )
    for name, value in config.kwargs.items():
        if name in _RESERVED:
            where = _RESERVED[name]
            remedy = f"is set by {where}" if where else "is set by the model"
            raise ConfigError(f"{remedy}, remove it", key=f"optim.kwargs.{name}", value=value)
        if name in inspect.signature(factory.create_optimizer_v2).parameters and name != "foreach":
            # with groups of ours the factory would drop it silently
            raise ConfigError("is no argument of an optimiser, remove it", key=f"optim.kwargs.{name}", value=value)
    kwargs: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.kwargs.items()}
    # torch refuses Nesterov without momentum; timm calls SGD without Nesterov `momentum`
    name = "momentum" if config.name == "sgd" and config.momentum == 0 else config.name
    try:
        optimizer: torch.optim.Optimizer = factory.create_optimizer_v2(
            list(groups),
            name,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            **kwargs,
        )
    except Exception as error:  # wrong arguments and missing packages are answered with errors of every type
        reason = f"{config.name} cannot be built: {type(error).__name__}: {error}"
        if config.kwargs:
            raise ConfigError(reason, key="optim.kwargs", value=dict(config.kwargs)) from error
        raise ConfigError(reason, key="optim.name", value=config.name) from error
    for name in config.kwargs:  # timm drops these silently where an optimiser has none
        if name in ("eps", "betas") and name not in optimizer.defaults:
            taken = [p for p in inspect.signature(type(optimizer)).parameters if p not in _RESERVED]
            raise ConfigError(
                f"{config.name} has no {name}", key=f"optim.kwargs.{name}", value=config.kwargs[name], choices=taken
            )
    if getattr(optimizer, "is_second_order", False):
        raise ConfigError("needs second derivatives, which are not computed", key="optim.name", value=config.name)
    _fuse(optimizer)
    return optimizer


def _fuse(optimizer: torch.optim.Optimizer) -> None:
    """One kernel for all of a step, where torch has one. It takes gradients and state to lie in memory as the parameter does:
    torch sees to the former, `place_like_parameters` to the latter."""
    chosen = any(optimizer.defaults.get(name) for name in ("foreach", "capturable", "differentiable"))
    devices = {parameter.device.type for group in optimizer.param_groups for parameter in group["params"]}
    if (
        type(optimizer) in _FUSED
        and optimizer.defaults.get("fused") is None
        and not chosen
        and devices <= {"cpu", "cuda"}
    ):
        optimizer.defaults["fused"] = True
        for group in optimizer.param_groups:
            group["fused"] = True


def fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is one of torch's whose kernel takes a flag that says that the step is to change nothing."""
    return type(optimizer) in _FUSED and all(group.get("fused") for group in optimizer.param_groups)


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Share of the learning rate for every parameter by name: decay^(n-1-i) in layer i of n, the heads being the last layer.

    Layers as timm's matchers group them (BEiT's layer-wise decay; ResNet-18: stem, 8 blocks, head). A backbone without
    matcher counts its children, those that hold vectors only (norms) with the one before.

    Args:
        model: with the child `backbone`.
        decay: in (0, 1].
    """
    backbone = model.get_submodule("backbone")
    layers, head = _layers(backbone)
    scales = {name: 1.0 for name, _ in model.named_parameters()}
    for name, layer in layers.items():
        scales[f"backbone.{name}"] = decay ** (head - layer)
    return scales


def _layers(backbone: nn.Module) -> tuple[dict[str, int], int]:
    """Layer number by parameter name, and the number of the heads' layer."""
    matcher = getattr(backbone, "group_matcher", None)
    if matcher is None:
        layers: dict[str, int] = {}
        number = -1
        for name, child in backbone.named_children():
            parameters = dict(child.named_parameters(prefix=name))
            if number < 0 or any(p.ndim > 1 for p in parameters.values()):
                number += bool(parameters)
            layers |= dict.fromkeys(parameters, max(number, 0))
        own = {name: 0 for name, _ in backbone.named_parameters(recurse=False)}
        return {**own, **layers}, max(number, 0) + 1
    import timm.models

    groups = matcher(coarse=False)
    head = "classifier of ours"  # no pattern knows it, as none knows timm's own classifiers: it is the last layer
    names = [(name, None) for name, _ in backbone.named_parameters()]
    if isinstance(groups, dict):
        names.append((head, None))
    named: Any = SimpleNamespace(named_parameters=lambda: names)
    found: dict[str, int] = timm.models.group_parameters(named, groups, reverse=True)
    last = found.pop(head, None)
    return found, max(found.values()) + 1 if last is None else last


def _vectors_by_meaning(model: nn.Module) -> set[str]:
    """Tables of vectors: Muon orthogonalises matrices that map, these it leaves to AdamW (as timm's examples do)."""
    listed: Iterable[str] = getattr(getattr(model, "backbone", None), "no_weight_decay", set)()
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return tables | {f"backbone.{name}" for name in listed}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share (`lr_scale`, 1 where there is none) of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def learning_rate(config: Optim, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """Learning rate of a step (from 0): linear warm-up, then a cosine not shifted by it (timm without prefix)."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.warmup_lr + step * (config.lr - config.warmup_lr) / warmup
    if config.schedule == "constant":
        return config.lr
    phase = math.pi * step / (epochs * steps_per_epoch)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(phase))


def place_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give state of a parameter's shape the parameter's memory order, which a checkpoint does not keep."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
