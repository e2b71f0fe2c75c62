"""Convolutions that do not multiply by their padding, where that is most of what they would do."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def skip_padding(module: nn.Module) -> None:
    """Let every plain `Conv2d` in `module` be a matrix product where its result has one position.

    The last stage of a ResNet works on a single pixel when images are small, and eight of nine taps of its kernels on zeros:
    a CPU's libraries multiply by them all the same. Values are the same up to rounding, parameters and names are unchanged.
    """
    for child in module.modules():
        if type(child) is nn.Conv2d and child.groups == 1 and child.padding_mode == "zeros":
            child.__class__ = _PaddingSkipped


class _PaddingSkipped(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, C, h', w']."""
        height, width = self._one_position(input.shape[2], 0), self._one_position(input.shape[3], 1)
        if height is None or width is None:
            return super().forward(input)
        # channels last in both: the order that `channels_last` has them in
        weight = self.weight[:, :, height[0], width[0]].permute(0, 2, 3, 1).flatten(1)
        window = input[:, :, height[1], width[1]].permute(0, 2, 3, 1).flatten(1)
        return F.linear(window, weight, self.bias)[:, :, None, None]

    def _one_position(self, size: int, axis: int) -> tuple[slice, slice] | None:
        """Taps that meet the image, and where; None where the result has several positions."""
        if isinstance(self.padding, str):  # `same` or `valid`
            return None
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        padding, dilation = self.padding[axis], self.dilation[axis]
        if (size + 2 * padding - dilation * (kernel - 1) - 1) // stride != 0:
            return None
        taps = [tap for tap in range(kernel) if 0 <= tap * dilation - padding < size]
        if not taps:
            return None
        first, last = taps[0] * dilation - padding, taps[-1] * dilation - padding
        return slice(taps[0], taps[-1] + 1), slice(first, last + 1, dilation)
