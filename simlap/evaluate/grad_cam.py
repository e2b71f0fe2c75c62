"""Where in an image the evidence for a score lies: Grad-CAM (Selvaraju et al., ICCV 2017) on a backbone's feature maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

LEAST_SIDE = 4
"""The last feature map with so many places to a side is taken, where there is one: on small images the last one of all is often
a single place."""


@dataclass(frozen=True)
class GradCam:
    """What `grad_cam` finds."""

    maps: Tensor
    """[n, h, w], not negative: ReLU of the sum over channels of (mean gradient x feature)."""
    scores: Tensor
    """[n]"""
    layer: str
    """Name and type of the module whose output it is."""


def grad_cam(backbone: nn.Module, images: Tensor, score: Callable[[Tensor], Tensor]) -> GradCam | None:
    """Maps of the evidence for the score; None where the backbone has no feature map that the score depends on.

    Looked at are the outputs of the stages that timm lists (`feature_info`), for other networks those of their direct children.
    Patch tokens are reshaped to their grid; where the score does not depend on the last ones (a class token), the layer before
    is taken.

    Args:
        backbone: in evaluation mode; its parameters get no gradients.
        images: [n, c, s, s], as the network takes them.
        score: features [n, d] to one number each, [n]; differentiable.
    """
    outputs: dict[str, Tensor] = {}
    handles = _keep_outputs(backbone, outputs)
    try:
        with torch.enable_grad():
            scores = score(backbone(images.detach().requires_grad_()))
    finally:
        for handle in handles:
            handle.remove()
    if not outputs:
        return None
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(scores.sum(), list(outputs.values()), allow_unused=True)
    found: list[tuple[str, Tensor, Tensor]] = []
    for (name, output), gradient in zip(outputs.items(), gradients, strict=True):
        if gradient is None:
            continue
        of_output, of_gradient = _as_map(backbone, output.detach()), _as_map(backbone, gradient)
        if of_output is not None and of_gradient is not None and bool(of_gradient.any()):
            found.append((name, of_output, of_gradient))
    if not found:
        return None
    large = [one for one in found if min(one[1].shape[2:]) >= LEAST_SIDE]
    layer, features, gradient = large[-1] if large else max(found, key=lambda one: one[1].shape[2] * one[1].shape[3])
    weights = gradient.mean((2, 3), keepdim=True)  # [n, k, 1, 1]
    kind = type(backbone.get_submodule(layer)).__name__
    return GradCam(F.relu((weights * features).sum(1)), scores.detach(), f"{layer} ({kind})")


def gated_similarity(z: Tensor, key: Tensor, gate: Tensor) -> Tensor:
    """Cosine in the subspace that a gate opens (docs/method.md, step 3); 0 where a side is the zero vector.

    Args:
        z: [n, D]
        key: [D]
        gate: [D]

    Returns:
        [n]
    """
    return F.normalize(gate * z, dim=1) @ F.normalize(gate * key, dim=0)


def _keep_outputs(backbone: nn.Module, outputs: dict[str, Tensor]) -> list[RemovableHandle]:
    """From now on the stages' outputs are kept, in the order in which they are made."""

    def keep(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                outputs.pop(name, None)
                outputs[name] = output

        return hook

    return [module.register_forward_hook(keep(name)) for name, module in _stages(backbone)]


def _stages(backbone: nn.Module) -> list[tuple[str, nn.Module]]:
    modules = dict(backbone.named_modules())
    listed = getattr(backbone, "feature_info", None)
    names = [one.get("module", "") for one in listed] if isinstance(listed, list) else []
    found = [(name, modules[name]) for name in names if name in modules]
    return found or list(backbone.named_children())


def _as_map(backbone: nn.Module, output: Tensor) -> Tensor | None:
    """[n, k, h, w] of an output or its gradient; None where it is no map of more than one place."""
    if output.ndim == 4:
        # timm says where channels are last (Swin)
        output = output.permute(0, 3, 1, 2) if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else output
    elif output.ndim == 3:
        tokens = output[:, int(getattr(backbone, "num_prefix_tokens", 0)) :]  # [n, t, k]
        side = math.isqrt(tokens.shape[1])
        if side * side != tokens.shape[1]:
            return None
        output = tokens.transpose(1, 2).unflatten(2, (side, side))
    else:
        return None
    return output if output.shape[2] * output.shape[3] > 1 else None
