"""Convolutions that do not multiply by their padding, where that is most of what they would do."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable


def skip_padding(module: nn.Module) -> None:
    """Let every plain `Conv2d` in `module` be a matrix product where that takes less than half of its multiplications.

    The last stages of a ResNet work on 2 x 2 and single pixels when images are small, and most of the taps of its kernels on
    zeros: a CPU's libraries multiply by them all the same. Values are the same up to rounding, parameters and names are
    unchanged.
    """
    for child in module.modules():
        if type(child) is nn.Conv2d and child.groups == 1 and child.padding_mode == "zeros":
            child.__class__ = _PaddingSkipped


@dataclass(frozen=True)
class _Shape:
    """A convolution as a matrix product of whole images: which tap of the kernel joins each output to each input position."""

    inputs: tuple[slice, slice]
    """The rows and columns of the image that are met."""
    outputs: tuple[int, int]
    taps: Tensor
    """[positions out, positions in], numbers in the flattened kernel."""


class _PaddingSkipped(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, C, h', w']."""
        shape = self._shape(input.shape[2], input.shape[3])
        if shape is None:
            return super().forward(input)
        output: Tensor = _Dense.apply(input, self.weight, shape)
        return output if self.bias is None else output + self.bias.to(output.dtype)[:, None, None]

    def _shape(self, *size: int) -> _Shape | None:
        """None where the product would not be worth it, or some outputs do not meet all of the inputs."""
        known: dict[tuple[int, ...], _Shape | None] = self.__dict__.setdefault("_shapes", {})
        if size not in known:
            known[size] = self._find_shape(size)
        return known[size]

    def _find_shape(self, size: tuple[int, ...]) -> _Shape | None:
        if isinstance(self.padding, str):  # `same` or `valid`
            return None
        vertical, horizontal = (self._taps(length, axis) for axis, length in enumerate(size))
        if vertical is None or horizontal is None:
            return None
        (rows, down), (columns, across) = vertical, horizontal
        if 2 * len(down[0]) * len(across[0]) >= self.kernel_size[0] * self.kernel_size[1]:
            return None
        taps = [
            [y * self.kernel_size[1] + x for y, x in itertools.product(one, other)]
            for one, other in itertools.product(down, across)
        ]
        return _Shape((rows, columns), (len(down), len(across)), torch.tensor(taps))

    def _taps(self, size: int, axis: int) -> tuple[slice, list[list[int]]] | None:
        """Along one axis: the inputs that are met, and by output position the taps that meet each of them."""
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        padding, dilation = self.padding[axis], self.dilation[axis]
        assert isinstance(padding, int)
        positions = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        met = [
            {place: tap for tap in range(kernel) if 0 <= (place := at * stride + tap * dilation - padding) < size}
            for at in range(positions)
        ]
        if not met[0] or any(one.keys() != met[0].keys() for one in met):
            return None
        places = sorted(met[0])
        step = places[1] - places[0] if len(places) > 1 else 1
        return slice(places[0], places[-1] + 1, step), [[one[place] for place in places] for one in met]


class _Dense(torch.autograd.Function):
    """The convolution of `shape`. Autograd's own would go through the kernel's gradient once for every slice of it.

    Channels come last in all matrices: the order that `channels_last` has them in.
    """

    @staticmethod
    @custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(ctx: Any, images: Tensor, weight: Tensor, shape: _Shape) -> Tensor:
        rows, columns = shape.inputs
        window = images[:, :, rows, columns].permute(0, 2, 3, 1).flatten(1)  # [b, positions in x c]
        kernel = weight.permute(0, 2, 3, 1).flatten(1, 2)  # [C, taps, c]
        dense = torch.cat([kernel[:, taps].flatten(1) for taps in shape.taps])  # [positions out x C, positions in x c]
        ctx.save_for_backward(weight, window, dense)
        ctx.shape, ctx.size = shape, images.shape
        output: Tensor = (window @ dense.T).unflatten(1, (*shape.outputs, -1)).permute(0, 3, 1, 2)
        return output

    @staticmethod
    @custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        weight, window, dense = ctx.saved_tensors
        shape: _Shape = ctx.shape
        rows, columns = shape.inputs
        flat = grad.permute(0, 2, 3, 1).flatten(1)  # [b, positions out x C]
        to_images = to_weight = None
        if ctx.needs_input_grad[0]:
            to_images = torch.empty(ctx.size, dtype=window.dtype, memory_format=torch.channels_last).zero_()
            part = to_images[:, :, rows, columns]
            part.copy_((flat @ dense).unflatten(1, (*part.shape[2:], -1)).permute(0, 3, 1, 2))
        if ctx.needs_input_grad[1]:
            found = (flat.T @ window).view(*shape.taps.shape[:1], len(weight), shape.taps.shape[1], -1)
            to_weight = torch.zeros_like(weight)  # laid out as the parameter is, or the optimiser would be given a copy
            for of_output, taps in zip(found, shape.taps.tolist(), strict=True):
                for place, tap in enumerate(taps):
                    to_weight[:, :, *divmod(tap, weight.shape[3])] += of_output[:, place]
        return to_images, to_weight, None
