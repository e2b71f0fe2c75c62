"""The layers of RandAugment on a batch: all rows that need the same arithmetic go through it together.

Invert, posterize, solarize, solarize-add, brightness, auto-contrast, equalize and contrast are one look-up in tables;
colour and sharpness are one blend; shears, translations and rotation are affine maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simlap.data.augment import pillow, tables
from simlap.data.augment.affine import affine, shift_columns, shift_lines
from simlap.data.augment.device import constant, move_all
from simlap.data.augment.geometry import Interpolation

Levels = NDArray[np.float64]

# the order of a layer's rows: neighbours share arithmetic
_FIXED, _AUTO, _EQUAL, _CONTRAST, _COLOUR, _SHARP, _SHEAR_X, _SHEAR_Y, _MOVE_X, _MOVE_Y, _ROTATE, _REST = range(12)
_GROUPS = {
    **dict.fromkeys(tables.FIXED, _FIXED),
    "AutoContrast": _AUTO,
    "Equalize": _EQUAL,
    "Contrast": _CONTRAST,
    "Color": _COLOUR,
    "Sharpness": _SHARP,
    "ShearX": _SHEAR_X,
    "ShearY": _SHEAR_Y,
    "TranslateXRel": _MOVE_X,
    "TranslateYRel": _MOVE_Y,
    "Rotate": _ROTATE,
}


@dataclass(frozen=True)
class Choice:
    """Rows of a batch that one operation changes, in one layer."""

    operation: str
    """timm's name."""
    rows: NDArray[np.int64]
    amounts: Levels
    """One per row, what timm passes to the operation on one image (an angle, a factor, a threshold ...)."""


class _Layer(NamedTuple):
    """Arguments on the images' device."""

    rows: Tensor
    """int64 [b], the rows that change in the order of the groups, then the others."""
    fixed: Tensor
    """uint8 [., 256], tables that do not depend on the images."""
    factors: Tensor
    """float32, of contrast, colour and sharpness."""
    shears: Tensor
    """float32 [., s], shifts of lines (X), then of columns (Y)."""
    moves: Tensor
    """float32, shifts to the side (X), then downwards (Y)."""
    coefficients: Tensor
    """float32 [., 6] of affine maps."""


def apply_layers(
    images: Tensor, layers: list[list[Choice]], fill: tuple[float, ...], interpolation: Interpolation
) -> Tensor:
    """One operation after the other on each row.

    Args:
        images: uint8 [b, c, s, s].
        layers: a row has at most one operation in each.
        fill: c grey levels of what a geometric operation uncovers.
        interpolation: of the geometric operations.

    Returns:
        uint8 [b, c, s, s], a new tensor.
    """
    device, size = images.device, images.shape[-1]
    planned = [_plan(choices, len(images), size, one_map=device.type != "cpu") for choices in layers if choices]
    if not planned:
        return images.clone()
    # where each row lies after the last layer, which leaves them in its own order
    places = torch.from_numpy(np.arange(len(images)))
    for _, layer in planned:
        order = layer.rows.clone()
        layer.rows.copy_(places[order])
        places[order] = torch.arange(len(order))
    moved = move_all([places, *(part for _, layer in planned for part in layer)], device)
    levels = constant(fill, device)
    width = len(_Layer._fields)
    for number, (counts, _) in enumerate(planned):
        layer = _Layer(*moved[1 + number * width : 1 + (number + 1) * width])
        images = _apply(images.index_select(0, layer.rows), counts, layer, levels, interpolation)
    return images.index_select(0, moved[0])


def _plan(choices: list[Choice], num_rows: int, size: int, *, one_map: bool) -> tuple[list[int], _Layer]:
    """How many rows each group has, the last one those that stay, and the arguments on the CPU.

    Args:
        one_map: shears and translations together with rotation, which is more work in fewer steps.
    """
    rows: list[list[NDArray[np.int64]]] = [[] for _ in range(_REST)]
    arguments: list[list[NDArray[Any]]] = [[] for _ in range(_REST)]
    for choice in choices:
        name, amounts = choice.operation.removesuffix("Increasing"), choice.amounts
        group = _GROUPS[name]
        if group == _FIXED:
            arguments[group].append(tables.FIXED[name](amounts))
        elif group == _ROTATE or (group >= _SHEAR_X and one_map):
            group = _ROTATE
            arguments[group].append(_coefficients(name, amounts, size))
        elif group >= _MOVE_X:
            arguments[group].append(amounts * size)
        elif group >= _SHEAR_X:
            arguments[group].append(amounts[:, None] * (np.arange(size) + 0.5))
        else:
            arguments[group].append(amounts)
        rows[group].append(choice.rows)

    def joined(groups: slice, width: int, dtype: type[np.generic]) -> Tensor:
        parts = [part.reshape(len(part), -1) for group in arguments[groups] for part in group]
        return torch.from_numpy(np.concatenate([np.zeros((0, width)), *parts]).astype(dtype))

    changed = np.concatenate([part for group in rows for part in group])
    stays = np.ones(num_rows, dtype=bool)
    stays[changed] = False
    layer = _Layer(
        torch.from_numpy(np.concatenate((changed, np.flatnonzero(stays)))),
        joined(slice(_FIXED, _FIXED + 1), 256, np.uint8),
        joined(slice(_CONTRAST, _SHARP + 1), 1, np.float32)[:, 0],
        joined(slice(_SHEAR_X, _SHEAR_Y + 1), size, np.float32),
        joined(slice(_MOVE_X, _MOVE_Y + 1), 1, np.float32)[:, 0],
        joined(slice(_ROTATE, _ROTATE + 1), 6, np.float32),
    )
    counts = [sum(map(len, group)) for group in rows]
    return [*counts, num_rows - sum(counts)], layer


def _coefficients(name: str, amounts: Levels, size: int) -> NDArray[np.float64]:
    """[n, 6], what `affine` takes."""
    values = np.zeros((len(amounts), 6))
    values[:, [0, 4]] = 1
    if name == "Rotate":
        cos, sin, middle = np.cos(np.radians(amounts)), np.sin(np.radians(amounts)), size / 2
        values[:, 0], values[:, 1], values[:, 2] = cos, -sin, middle - (cos - sin) * middle
        values[:, 3], values[:, 4], values[:, 5] = sin, cos, middle - (sin + cos) * middle
    elif name.startswith("Shear"):
        values[:, 1 if name == "ShearX" else 3] = amounts
    else:
        values[:, 2 if name == "TranslateXRel" else 5] = amounts * size
    return values


def _apply(images: Tensor, counts: list[int], layer: _Layer, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """One layer. images: uint8 [b, c, s, s], in the order of the groups, as is the result."""
    part = images.split(counts)
    done: list[Tensor] = []
    # contrast and colour lie side by side
    luma = pillow.luma(images[sum(counts[:_CONTRAST]) : sum(counts[: _COLOUR + 1])])
    if pointwise := sum(counts[:_COLOUR]):
        channels, pixels = images.shape[1], images[:pointwise].flatten(2).to(torch.int64)
        made = [layer.fixed[:, None].expand(-1, channels, -1)]
        if counts[_AUTO]:
            made.append(tables.auto_contrast(part[_AUTO].flatten(2)))
        if counts[_EQUAL]:
            made.append(tables.equalize(pixels.split(counts[:_COLOUR])[_EQUAL]))
        if counts[_CONTRAST]:
            made.append(tables.contrast(luma[: counts[_CONTRAST]], channels, layer.factors[: counts[_CONTRAST]]))
        done.append(tables.look_up(pixels, torch.cat(made)).view(-1, *images.shape[1:]))
    if counts[_COLOUR] + counts[_SHARP]:
        blended = torch.cat((part[_COLOUR], part[_SHARP]))
        degenerate = torch.cat((luma[counts[_CONTRAST] :].expand_as(part[_COLOUR]), pillow.smoothed(part[_SHARP])))
        done.append(tables.blend(degenerate, blended, layer.factors[counts[_CONTRAST] :, None, None, None]))
    for x, y, move, shifts in (
        (_SHEAR_X, _SHEAR_Y, shift_columns, layer.shears),
        (_MOVE_X, _MOVE_Y, shift_lines, layer.moves),
    ):
        if counts[x] + counts[y]:
            upright = torch.cat((part[x].transpose(2, 3), part[y]))
            across, down = move(upright, shifts, fill, interpolation).split([counts[x], counts[y]])
            done += [across.transpose(2, 3), down]
    if counts[_ROTATE]:
        done.append(affine(part[_ROTATE], layer.coefficients, fill, interpolation))
    return torch.cat([*done, part[_REST]])
