"""Which image features the gates open: images that are strong in the dimensions of some pairs, and where in an image the
evidence for a pair lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simlap.data.augment import to_input
from simlap.data.evaluation import eval_view
from simlap.data.splits import ImageSet, Splits
from simlap.evaluate.grad_cam import gated_similarity, grad_cam
from simlap.evaluate.pair_gates import gate_chunks, gates_of
from simlap.evaluate.pair_heat import ChosenPair
from simlap.evaluate.pictures import overlay, picture
from simlap.methods.base import Method
from simlap.nn.filter import FeatureFilter

SHOWN_DIMENSIONS, TOP_IMAGES, TOP_PAIRS = 8, 6, 3
DIMENSIONS_PER_PAIR = 2
"""At most so many of the most selective dimensions have the same pair at their top; of a named pair, so many are shown."""
CAM_PAIRS = 3
CAM_QUARTILES = (0.75, 0.5, 0.25)
"""Of a class's similarities: the images there are shown. Not the most similar ones: the gradient of a cosine vanishes at 1."""
MAX_NAMED = 5
"""Of named pairs, so many have pictures: a page has a weight."""
_EMBED_ROWS = 4096


@dataclass(frozen=True)
class Selective:
    """A dimension that opens for few pairs."""

    dimension: int
    mean: float
    """Gate over all pairs a < b, mean."""
    pairs: list[tuple[int, int, float]]
    """Those that open it most, with their gates, the largest first; before them the named pair that it is shown for."""


@dataclass(frozen=True)
class Seen:
    """What the pictures are made of."""

    model: Method
    images: ImageSet
    splits: Splits
    features: Tensor
    """[n, d], of the images, in their order."""


def gate_pictures(seen: Seen, distance: Tensor, named: Sequence[ChosenPair] = ()) -> dict[str, Any]:
    """Pictures and what they show, JSON-able: `images` (PNG by row of the split), `dimensions`, `cams`, the `layer` of the
    latter, and `notes` of what could not be made.

    Args:
        seen: model and images.
        distance: [C, C], of the gates: says which pairs are shown where none is named.
        named: the pairs that are wanted.
    """
    gates, labels = seen.model.gates, seen.images.labels.cpu()
    if gates is None:
        raise ValueError("the method has no gates")
    z = _embedded(seen.model, seen.features)
    if z is None:
        return {
            "images": {},
            "dimensions": [],
            "cams": [],
            "layer": None,
            "notes": ["The method has no embedding: no pictures."],
        }
    notes: list[str] = []
    if len(named) > MAX_NAMED:
        notes.append(f"Pictures are shown for the first {MAX_NAMED} of the {len(named)} pairs that were named.")
        named = named[:MAX_NAMED]
    count, device = seen.splits.num_classes, z.device
    dimensions = selective_dimensions(gates, count, device, named)
    ends = {end: [_end(z[:, one.dimension], end == "highest") for one in dimensions] for end in ("highest", "lowest")}
    present = torch.bincount(labels, minlength=count).bool()
    pairs = cam_pairs(distance, present, named)
    notes += [
        f"There is no image of {seen.splits.class_names[label]} in this part of the data: nothing to show for it."
        for label in dict.fromkeys(x for pair in named for x in (pair.first, pair.second))
        if not present[label]
    ]
    cams, layer, rows = _cams(seen, gates, z, pairs)
    if layer is None and pairs:
        notes.append(
            "The backbone has no feature map of more than one place: Grad-CAM cannot say where the evidence lies."
        )
    wanted = sorted({*rows, *(row for tops in ends.values() for top in tops for row, _ in top)})
    pixels = _pixels(seen, wanted)
    return {
        "images": {str(row): picture(image) for row, image in zip(wanted, pixels, strict=True)},
        "dimensions": [
            {
                "dimension": one.dimension,
                "mean": round(one.mean, 4),
                "pairs": [[a, b, round(g, 4)] for a, b, g in one.pairs],
                **{
                    end: [{"row": row, "label": int(labels[row]), "z": round(value, 3)} for row, value in tops[number]]
                    for end, tops in ends.items()
                },
            }
            for number, one in enumerate(dimensions)
        ],
        "cams": cams,
        "layer": layer,
        "notes": notes,
    }


def _end(values: Tensor, largest: bool) -> list[tuple[int, float]]:
    """Rows and values at one end of z in a dimension, [n], the extreme first."""
    top = values.topk(min(TOP_IMAGES, len(values)), largest=largest)
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


@torch.no_grad()
def selective_dimensions(
    gates: FeatureFilter, num_classes: int, device: torch.device | str = "cpu", named: Sequence[ChosenPair] = ()
) -> list[Selective]:
    """The dimensions that open most selectively, at most 8 (of named pairs: 2 for each): by how much the largest gate of any pair
    (or the named pair's) is above the mean over all pairs a < b."""
    total, mixed = torch.zeros(()), 0
    best: Tensor | None = None
    where: Tensor | None = None
    for a, b, g in gate_chunks(gates, num_classes, device):
        other = a != b
        total, mixed = total.to(g) + g[other].sum(0), mixed + int(other.sum())
        g, codes = g[other], (a * num_classes + b)[other]
        if best is not None and where is not None:
            g, codes = torch.cat((best, g)), torch.cat((where, codes[:, None].expand(-1, g.shape[1])))
        else:
            codes = codes[:, None].expand(-1, g.shape[1])
        best, order = g.topk(min(TOP_PAIRS, len(g)), dim=0)  # [k, D]
        where = codes.gather(0, order)
    assert best is not None
    assert where is not None
    mean = total / max(1, mixed)

    def selective(dimension: int, *shown_for: tuple[int, int, float]) -> Selective:
        pairs = [
            (int(code) // num_classes, int(code) % num_classes, float(g))
            for code, g in zip(where[:, dimension].tolist(), best[:, dimension].tolist(), strict=True)
        ]
        known = {pair[:2] for pair in shown_for}
        return Selective(dimension, float(mean[dimension]), [*shown_for, *(p for p in pairs if p[:2] not in known)])

    chosen: list[int] = []
    if named:
        own = gates_of(
            gates,
            torch.tensor([pair.first for pair in named], device=device),
            torch.tensor([pair.second for pair in named], device=device),
        )
        asked: dict[int, tuple[int, int, float]] = {}
        for pair, g in zip(named, own, strict=True):
            for dimension in (g - mean).argsort(descending=True, stable=True)[:DIMENSIONS_PER_PAIR].tolist():
                classes = sorted((pair.first, pair.second))
                asked.setdefault(dimension, (classes[0], classes[1], float(g[dimension])))
        return [selective(dimension, shown) for dimension, shown in asked.items()]
    used: dict[int, int] = {}
    for dimension in (best[0] - mean).argsort(descending=True, stable=True).tolist():
        top = int(where[0, dimension])
        if used.get(top, 0) < DIMENSIONS_PER_PAIR:
            used[top] = used.get(top, 0) + 1
            chosen.append(dimension)
        if len(chosen) == SHOWN_DIMENSIONS:
            break
    return [selective(dimension) for dimension in chosen]


def cam_pairs(distance: Tensor, present: Tensor, named: Sequence[ChosenPair] = ()) -> list[tuple[int, int]]:
    """Pairs a <= b of classes that have images: those that are named, else the two closest and the farthest.

    Args:
        distance: [C, C]
        present: bool [C], whether there are images of a class.
    """
    if named:
        found = dict.fromkeys((min(p.first, p.second), max(p.first, p.second)) for p in named)
        return [pair for pair in found if present[pair[0]] and present[pair[1]]]
    first, second = torch.triu_indices(len(distance), len(distance), 1)
    there = (present[first] & present[second]).nonzero()[:, 0]
    order = there[distance[first[there], second[there]].argsort(stable=True)].tolist()
    chosen = dict.fromkeys([*order[: CAM_PAIRS - 1], *order[-1:]])
    return [(int(first[i]), int(second[i])) for i in chosen]


def _cams(
    seen: Seen, gates: FeatureFilter, z: Tensor, pairs: Sequence[tuple[int, int]]
) -> tuple[list[dict[str, Any]], str | None, list[int]]:
    """Of each pair a -> b and b -> a: images of the one class, by their similarity to the other's mean key."""
    cams: list[dict[str, Any]] = []
    layer: str | None = None
    rows: list[int] = []
    labels, model = seen.images.labels.to(z.device), seen.model
    for pair in pairs:
        gate = gates_of(gates, *(torch.tensor([x], device=z.device) for x in pair))[0].to(z)
        for one, other in dict.fromkeys((pair, pair[::-1])):
            key = z[labels == other].mean(0)
            own = (labels == one).nonzero()[:, 0]
            similar = gated_similarity(z[own], key, gate)
            order = own[similar.argsort(stable=True)].tolist()
            top = list(dict.fromkeys(order[round(quartile * (len(order) - 1))] for quartile in CAM_QUARTILES))
            pixels = _pixels(seen, top)
            inputs = to_input(pixels.to(z.device), seen.splits.mean, seen.splits.std)

            def score(h: Tensor, key: Tensor = key, gate: Tensor = gate) -> Tensor:
                embedded = model.embed(h)
                assert embedded is not None
                return gated_similarity(embedded, key, gate)

            found = grad_cam(model.backbone, inputs, score)
            if found is None:
                return [], None, []
            layer = f"{found.layer}, {found.maps.shape[1]} × {found.maps.shape[2]} places"
            rows += top
            cams.append(
                {
                    "first": one,
                    "second": other,
                    "mean_similarity": round(float(similar.mean()), 4),
                    "images": [
                        {
                            "row": row,
                            "similarity": round(float(value), 4),
                            # all evidence is against it where the map is empty
                            "overlay": overlay(map_, image.shape[1:]) if bool(map_.any()) else None,
                        }
                        for row, value, map_, image in zip(top, found.scores, found.maps, pixels, strict=True)
                    ],
                }
            )
    return cams, layer, rows


@torch.no_grad()
def _embedded(model: Method, features: Tensor) -> Tensor | None:
    """z [n, D] of the features, in evaluation mode."""
    was_training = model.training
    model.eval()
    parts = [model.embed(part) for part in features.split(_EMBED_ROWS)]
    model.train(was_training)
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


def _pixels(seen: Seen, rows: Sequence[int]) -> Tensor:
    """uint8 [m, c, s, s] as the network sees them, before they are normalised."""
    splits = seen.splits
    if not rows:
        return torch.empty(0, splits.channels, splits.image_size, splits.image_size, dtype=torch.uint8)
    parts = list(seen.images.subset(torch.tensor(rows)).batches(len(rows)))
    return eval_view(torch.cat(parts).cpu(), splits.image_size, splits.eval_size, splits.interpolation)
