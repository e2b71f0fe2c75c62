"""The head of fuse, against its formula written out again here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from simlap.nn import ArcGradHead

B, D_IN, C, HIDDEN, D = 6, 5, 4, 16, 8


def make(dtype: torch.dtype = torch.float64) -> ArcGradHead:
    return ArcGradHead(D_IN, C, hidden_dim=HIDDEN, embed_dim=D, temperature=0.1).to(dtype)


def normalised(x: Tensor) -> Tensor:
    """Batch norm without affine part, by batch statistics."""
    return (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()


def test_layers() -> None:
    head = make()
    layers = [type(layer) for layer in head.projector]
    assert layers == [nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Linear, nn.BatchNorm1d]
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert shapes == {  # no biases, no affine part of the second norm, no magnitudes
        "projector.0.weight": (HIDDEN, D_IN),
        "projector.2.weight": (HIDDEN,),
        "projector.2.bias": (HIDDEN,),
        "projector.3.weight": (D, HIDDEN),
        "classifier.weight": (C, D),
    }
    default = ArcGradHead(D_IN, C)
    assert default.projector[0].out_features == 2048
    assert default.classifier.in_features == 512


def test_formula() -> None:
    head, h = make(), torch.randn(B, D_IN, dtype=torch.float64)
    first, _, _, second, weight = (p.detach() for p in head.parameters())
    features = normalised(normalised((h @ first.T).relu()) @ second.T)
    z = features / features.norm(dim=1, keepdim=True)
    out = head(h)
    torch.testing.assert_close(out.z, z)
    for i in range(B):
        for c in range(C):
            cosine = (z[i] @ weight[c] / weight[c].norm()).item()
            assert out.evaluation_logits[i, c].item() == pytest.approx(cosine)
            assert out.training_logits[i, c].item() == pytest.approx((math.pi - math.acos(cosine)) / 0.1)


def test_magnitudes_of_the_weight_rows_are_frozen_at_one() -> None:
    """Longer rows give the same logits, and the gradient only turns them."""
    head, h = make().eval(), torch.randn(B, D_IN, dtype=torch.float64)
    before = head(h).training_logits
    labels = torch.arange(B) % C
    loss = nn.functional.cross_entropy(before, labels)
    (gradient,) = torch.autograd.grad(loss, head.classifier.weight)
    assert (gradient.norm(dim=1) > 0).all()
    along = (gradient * head.classifier.weight).sum(dim=1)
    torch.testing.assert_close(along, torch.zeros(C, dtype=torch.float64), atol=1e-12, rtol=0)
    with torch.no_grad():
        head.classifier.weight.mul_(torch.tensor([[0.01], [1.0], [3.0], [100.0]]))
    torch.testing.assert_close(head(h).training_logits, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_aligned_features_have_finite_gradients(dtype: torch.dtype, sign: float) -> None:
    """Where arccos has no slope; and just beside it, where the slope is largest."""
    head = make(dtype)
    head.projector = nn.Sequential()  # the features themselves
    for turn in (0.0, 1e-6, 3e-4, 1e-3):
        h = sign * head.classifier.weight.detach().repeat(2, 1)
        h = (h + turn * h.norm(dim=1, keepdim=True) * torch.randn_like(h)).requires_grad_()
        out = head(h)
        assert (out.evaluation_logits.abs() < 1).all()
        loss = nn.functional.cross_entropy(out.training_logits, torch.arange(C).repeat(2))
        for gradient in torch.autograd.grad(loss, [h, head.classifier.weight]):
            assert torch.isfinite(gradient).all()
        beside = sign * out.evaluation_logits.diagonal()
        assert (beside > 1 - 5e-7 - 100 * turn**2).all()


def test_gradients_reach_every_parameter() -> None:
    head = make(torch.float32)
    out = head(torch.randn(B, D_IN))
    (nn.functional.cross_entropy(out.training_logits, torch.arange(B) % C) + out.z[:, 0].sum()).backward()
    for name, p in head.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_gradcheck() -> None:
    head = make().eval()  # with running statistics
    h = torch.randn(3, D_IN, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: tuple(head(h)), [h])


def test_single_precision_from_the_last_norm_on_under_autocast() -> None:
    """The clamp at 1 - 1e-7 is no clamp in bfloat16."""
    head = make(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = head(torch.randn(B, D_IN))
    assert {x.dtype for x in out} == {torch.float32}
    torch.testing.assert_close(out.z.norm(dim=1), torch.ones(B), rtol=1e-6, atol=0)
    weight = head.classifier.weight
    torch.testing.assert_close(out.evaluation_logits, nn.functional.cosine_similarity(out.z[:, None], weight, dim=-1))


def test_sign_weights_are_the_rows_without_gradient() -> None:
    head = make()
    assert torch.equal(head.sign_weights(), head.classifier.weight)
    assert not head.sign_weights().requires_grad
