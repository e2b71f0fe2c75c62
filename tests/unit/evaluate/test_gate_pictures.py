from __future__ import annotations

import base64
import io
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from simlap.data.splits import ImageSet, load_splits
from simlap.evaluate.gate_pictures import Seen, cam_pairs, gate_pictures, selective_dimensions
from simlap.evaluate.grad_cam import gated_similarity
from simlap.evaluate.pair_gates import gates_of
from simlap.evaluate.pair_heat import ChosenPair
from simlap.evaluate.pictures import MAX_SIDE, overlay, picture
from simlap.methods.base import Method
from simlap.methods.build import build_method
from simlap.train.features import extract_features
from simlap.train.world import World
from tests.tiny import tiny, tiny_method
from tests.unit.evaluate.test_gate_analysis import Table

C, D = 6, 30


def _pixels(png: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(png))))


@pytest.fixture(scope="module")
def seen() -> Seen:
    experiment = tiny(data__fraction=0.3)
    splits = load_splits(experiment.data)
    model = build_method(experiment, num_classes=10, channels=1, world=World()).eval()
    return Seen(model, splits.test, splits, extract_features(model, splits.test, splits, World()))


def test_pictures_are_the_pixels() -> None:
    grey = torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8)
    np.testing.assert_array_equal(_pixels(picture(grey)), grey[0].numpy())
    colour = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    np.testing.assert_array_equal(_pixels(picture(colour)), colour.permute(1, 2, 0).numpy())
    assert _pixels(picture(torch.zeros(3, 224, 224, dtype=torch.uint8))).shape == (MAX_SIDE, MAX_SIDE, 3)


def test_an_overlay_is_brightest_at_the_largest_value() -> None:
    map_ = torch.zeros(4, 4)
    map_[1, 2] = 5
    pixels = _pixels(overlay(map_, (32, 32)))
    assert pixels.shape == (32, 32, 4)
    brightness = pixels[..., :3].sum(2)
    assert divmod(int(brightness.argmax()), 32) in list(itertools.product(range(8, 16), range(16, 24)))
    assert pixels[0, 0, 3] < pixels[12, 20, 3] < 255


def test_selective_dimensions_are_those_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simlap.evaluate.pair_gates._MAX_GATES", 4 * D)
    table = torch.rand(C, C, D, generator=torch.Generator().manual_seed(0))
    table = (table + table.transpose(0, 1)) / 2
    pairs = list(itertools.combinations(range(C), 2))
    gates = {d: sorted(((float(table[a, b, d]), a, b) for a, b in pairs), reverse=True) for d in range(D)}
    mean = {d: float(np.mean([g for g, *_ in gates[d]])) for d in range(D)}
    expected: list[int] = []
    used: dict[tuple[int, int], int] = {}
    for d in sorted(range(D), key=lambda d: mean[d] - gates[d][0][0]):
        top = gates[d][0][1:]
        used[top] = used.get(top, 0) + 1
        if used[top] <= 2 and len(expected) < 8:
            expected.append(d)
    found = selective_dimensions(Table(table), C)
    assert [one.dimension for one in found] == expected
    for one in found:
        assert one.mean == pytest.approx(mean[one.dimension])
        assert [(a, b) for a, b, _ in one.pairs] == [(a, b) for _, a, b in gates[one.dimension][:3]]
        assert [g for *_, g in one.pairs] == pytest.approx([g for g, *_ in gates[one.dimension][:3]])


def test_dimensions_of_a_named_pair() -> None:
    table = torch.full((C, C, D), 0.2)
    for a, b in ((1, 4), (4, 1)):
        table[a, b, 7], table[a, b, 9] = 1.0, 0.9
    first, second = selective_dimensions(Table(table), C, named=[ChosenPair(4, 1, "named")])
    assert (first.dimension, second.dimension) == (7, 9)
    assert first.pairs[0] == (1, 4, 1.0)
    assert len(first.pairs) == 3


def test_pairs_for_grad_cam_have_images() -> None:
    distance = torch.tensor([[0, 1, 5, 2], [1, 0, 6, 3], [5, 6, 0, 4], [2, 3, 4, 0.0]])
    everywhere = torch.ones(4, dtype=torch.bool)
    assert cam_pairs(distance, everywhere) == [(0, 1), (0, 3), (1, 2)]
    assert cam_pairs(distance, torch.tensor([True, True, True, False])) == [(0, 1), (0, 2), (1, 2)]
    named = [ChosenPair(3, 1, "named"), ChosenPair(1, 3, "named"), ChosenPair(2, 2, "named")]
    assert cam_pairs(distance, everywhere, named) == [(1, 3), (2, 2)]
    assert cam_pairs(torch.zeros(2, 2), torch.tensor([True, False])) == []


def test_what_is_shown_is_what_is_there(seen: Seen) -> None:
    distance = torch.rand(10, 10, generator=torch.Generator().manual_seed(0))
    found = json.loads(json.dumps(gate_pictures(seen, distance + distance.T)))
    with torch.no_grad():
        z = seen.model.embed(seen.features)
    assert z is not None
    assert len(found["dimensions"]) == 8
    for one in found["dimensions"]:
        column = z[:, one["dimension"]]
        assert [image["z"] for image in one["highest"]] == pytest.approx(column.topk(6).values.tolist(), abs=1e-3)
        assert [image["z"] for image in one["lowest"]] == pytest.approx((-(-column).topk(6).values).tolist(), abs=1e-3)
        for image in (*one["highest"], *one["lowest"]):
            assert image["label"] == int(seen.images.labels[image["row"]])
            shown = _pixels(found["images"][str(image["row"])])
            np.testing.assert_array_equal(shown, seen.images.images[image["row"], 0].numpy())
    assert len(found["cams"]) == 6
    assert found["notes"] == []
    assert found["layer"].endswith("places")
    gates = seen.model.gates
    assert gates is not None
    for cam in found["cams"]:
        a, b = cam["first"], cam["second"]
        gate = gates_of(gates, torch.tensor([a]), torch.tensor([b]))[0].float()
        similar = gated_similarity(z, z[seen.images.labels == b].mean(0), gate)
        own = similar[seen.images.labels == a]
        assert cam["mean_similarity"] == pytest.approx(float(own.mean()), abs=1e-3)
        values = [image["similarity"] for image in cam["images"]]
        assert values == sorted(values, reverse=True)
        assert values[1] == pytest.approx(float(own.sort().values[round((len(own) - 1) / 2)]), abs=1e-3)
        for image in cam["images"]:
            assert int(seen.images.labels[image["row"]]) == a
            assert image["similarity"] == pytest.approx(float(similar[image["row"]]), abs=1e-3)


def test_named_classes_without_images_are_said(seen: Seen) -> None:
    kept = (seen.images.labels != 3).nonzero()[:, 0]
    few = Seen(seen.model, seen.images.subset(kept), seen.splits, seen.features[kept])
    pairs = [ChosenPair(3, 5, "named"), ChosenPair(1, 5, "named")]
    found = gate_pictures(few, torch.zeros(10, 10), pairs)
    assert [(cam["first"], cam["second"]) for cam in found["cams"]] == [(1, 5), (5, 1)]
    assert found["notes"] == ["There is no image of 3 in this part of the data: nothing to show for it."]
    many = [ChosenPair(a, b, "named") for a, b in itertools.combinations((1, 2, 4, 5, 6), 2)]
    assert "first 5 of the 10 pairs" in gate_pictures(few, torch.zeros(10, 10), many)["notes"][0]


def test_a_method_without_embedding_has_no_pictures(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(seen.model), "embed", Method.embed)
    found = gate_pictures(seen, torch.zeros(10, 10))
    assert found["dimensions"] == found["cams"] == []
    assert "no embedding" in found["notes"][0]


def test_a_backbone_without_a_map_still_has_images_by_dimension(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simlap.evaluate.gate_pictures.grad_cam", lambda *arguments: None)
    found = gate_pictures(seen, torch.zeros(10, 10))
    assert found["cams"] == []
    assert found["dimensions"]
    assert "no feature map" in found["notes"][0]


def test_fuse_and_colour_images() -> None:
    experiment = tiny_method("fuse", data__fraction=0.1)
    splits = load_splits(experiment.data, channels=3)
    model = build_method(experiment, num_classes=10, channels=3, world=World()).eval()
    rows = torch.arange(40)
    images: ImageSet = splits.test.subset(rows)
    features: Tensor = extract_features(model, images, splits, World())
    found = gate_pictures(Seen(model, images, splits, features), torch.rand(10, 10))
    assert found["cams"]
    assert _pixels(next(iter(found["images"].values()))).shape == (8, 8, 3)
