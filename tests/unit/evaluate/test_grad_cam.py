from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simlap.config.schema import Backbone
from simlap.evaluate.grad_cam import GradCam, gated_similarity, grad_cam
from simlap.nn.backbone import build_backbone
from simlap.nn.projector import Projector


class TwoChannels(nn.Sequential):
    """Channel 0 sees what is bright, channel 1 what is dark; pooled."""

    def __init__(self) -> None:
        convolution = nn.Conv2d(1, 2, 1)
        with torch.no_grad():
            convolution.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
            convolution.bias.copy_(torch.tensor([-0.5, 0.5]))  # type: ignore[union-attr]
        super().__init__(convolution, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _quadrant() -> Tensor:
    """Bright in the upper left quadrant, dark elsewhere."""
    image = torch.zeros(1, 1, 8, 8)
    image[..., :4, :4] = 1
    return image


@pytest.mark.parametrize(("channel", "bright"), [(0, True), (1, False)])
def test_only_the_quadrant_that_matters_lights_up(channel: int, bright: bool) -> None:
    found = grad_cam(TwoChannels().eval(), _quadrant(), lambda h: h[:, channel])
    assert found is not None
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[:4, :4] = True
    expected = inside if bright else ~inside
    assert torch.equal(found.maps[0] > 0, expected)
    # the mean gradient of a mean over 64 places is 1 / 64, the feature is 1/2
    torch.testing.assert_close(found.maps[0][expected], torch.full((int(expected.sum()),), 0.5 / 64))
    assert found.layer == "1 (ReLU)"


def test_evidence_against_is_no_evidence() -> None:
    found = grad_cam(TwoChannels().eval(), _quadrant(), lambda h: -h[:, 0])
    assert found is not None
    assert not found.maps.any()


def _naive(features: Tensor, gradient: Tensor) -> Tensor:
    n, k, height, width = features.shape
    maps = torch.zeros(n, height, width, dtype=features.dtype)
    for i in range(n):
        for c in range(k):
            weight = sum(gradient[i, c, y, x] for y in range(height) for x in range(width)) / (height * width)
            maps[i] += weight * features[i, c]
    return maps.clamp(min=0)


def test_gradients_flow_through_gate_and_projector() -> None:
    """In float64: the map is the paper's formula, with the gradient by finite differences of the feature map."""
    torch.manual_seed(0)
    first, rest = nn.Conv2d(1, 3, 3, padding=1).double(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    backbone = nn.Sequential(first, nn.Tanh(), rest).eval()
    projector = Projector(3, 6, 8).double().eval()
    gate, key = torch.rand(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    images = torch.randn(2, 1, 4, 4, dtype=torch.float64)

    def score(h: Tensor) -> Tensor:
        return gated_similarity(projector(h), key, gate)

    found = grad_cam(backbone, images, score)
    assert found is not None
    with torch.no_grad():
        features = backbone[1](backbone[0](images))
        gradient, step = torch.empty_like(features), 1e-6
        for place in range(features[0].numel()):
            moved = []
            for sign in (1, -1):
                changed = features.clone()
                changed.view(2, -1)[:, place] += sign * step
                moved.append(score(rest(changed)))
            gradient.view(2, -1)[:, place] = (moved[0] - moved[1]) / (2 * step)
    assert float(gradient.abs().max()) > 1e-3
    torch.testing.assert_close(found.maps, _naive(features, gradient), rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(found.scores, score(backbone(images)))
    other = grad_cam(backbone, images, lambda h: gated_similarity(projector(h), key, 1 - gate))
    assert other is not None
    assert not torch.allclose(found.maps, other.maps)


def test_similarity_is_the_cosine_in_the_subspace() -> None:
    z, key = torch.randn(5, 7), torch.randn(7)
    gate = (torch.rand(7) > 0.5).float()
    kept = gate.bool()
    expected = torch.nn.functional.cosine_similarity(z[:, kept], key[kept][None], dim=1)
    torch.testing.assert_close(gated_similarity(z, key, gate), expected)
    assert gated_similarity(z, key, torch.zeros(7)).tolist() == [0] * 5


def _cam(name: str, size: int, **kwargs: Any) -> GradCam | None:
    torch.manual_seed(0)
    backbone = build_backbone(Backbone(name=name, kwargs=kwargs), 3, size).eval()
    features = int(backbone.num_features)  # type: ignore[arg-type]
    direction = torch.randn(features)
    return grad_cam(backbone, torch.randn(2, 3, size, size), lambda h: h @ direction)


def test_of_a_small_image_the_last_map_with_four_places_to_a_side() -> None:
    small = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "stem_type": "deep", "stem_width": 4}
    found = _cam("resnet18", 32, **small)
    assert found is not None
    assert found.layer == "layer2 (Sequential)"
    assert found.maps.shape == (2, 4, 4)
    assert found.maps.any()


@pytest.mark.parametrize(("pool", "layer"), [("token", "blocks.0 (Block)"), ("avg", "blocks.1 (Block)")])
def test_patch_tokens_are_reshaped(pool: str, layer: str) -> None:
    """With a class token, the score depends on the patches through the last block's attention only."""
    kwargs = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "global_pool": pool}
    found = _cam("vit_tiny_patch16_224", 16, **kwargs)
    assert found is not None
    assert found.layer == layer
    assert found.maps.shape == (2, 4, 4)


def test_channels_last_features_are_turned() -> None:
    found = _cam("swin_tiny_patch4_window7_224", 64, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4)
    assert found is not None
    assert found.maps.shape == (2, 8, 8)


def test_without_a_map_there_is_nothing_to_show() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    assert grad_cam(backbone, torch.randn(2, 1, 4, 4), lambda h: h.sum(1)) is None


def test_hooks_are_taken_away_again() -> None:
    backbone = TwoChannels().eval()
    with pytest.raises(ZeroDivisionError):
        grad_cam(backbone, _quadrant(), lambda h: h[:, 0] / 0 if h.numel() < 0 else 1 // 0)  # type: ignore[arg-type, return-value]
    assert not any(module._forward_hooks for module in backbone.modules())
