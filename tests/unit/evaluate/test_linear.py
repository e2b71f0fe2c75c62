from __future__ import annotations

import logging
import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from simlap import rng
from simlap.errors import DataError
from simlap.evaluate import linear
from simlap.evaluate.linear import L2_GRID, fit_lbfgs, fit_sgd, held_out_tenth


def _blobs(n: int, d: int = 6, classes: int = 4, seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    # features of very different size and place, as a backbone gives them
    scale = torch.logspace(-2, 2, d)
    return (centres[labels] + spread * torch.randn(n, d, generator=generator)) * scale + 5 * scale, labels


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("l2", [1e-4, 1e-1])
def test_lbfgs_is_scikit_learns_optimum(classes: int, l2: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    monkeypatch.setattr(linear, "_MAX_LOGITS", 7 * 40)  # several chunks
    x, y = _blobs(150, classes=classes)
    ours = fit_lbfgs(x, y, num_classes=classes, l2=l2, tolerance=1e-8)
    scaled = StandardScaler().fit_transform(x.double().numpy())
    # two classes: scikit-learn's own form has one weight vector and so half the penalty; the multinomial one is asked for
    theirs = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-10, max_iter=10_000)
    if classes == 2:
        theirs.set_params(C=2 / (l2 * len(x)))  # w and -w: ||W||^2 = 2 |w / 2|^2 * 2
        theirs.fit(scaled, y.numpy())
        difference = (ours.weight[1] - ours.weight[0]).numpy()
        np.testing.assert_allclose(difference, theirs.coef_[0], rtol=1e-3, atol=1e-4)
        return
    theirs.fit(scaled, y.numpy())
    np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_, rtol=1e-3, atol=1e-4)
    centred = ours.bias - ours.bias.mean()  # a constant on all classes is free
    np.testing.assert_allclose(centred.numpy(), theirs.intercept_ - theirs.intercept_.mean(), rtol=1e-3, atol=1e-4)
    assert ours.top1(x, y) == pytest.approx(theirs.score(scaled, y.numpy()))


def test_the_gradient_is_that_of_the_objective() -> None:
    x, y = _blobs(20, d=3, classes=3)
    w = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    logits = x.double() @ w[:, :-1].T + w[:, -1]
    loss = torch.nn.functional.cross_entropy(logits, y) + 0.3 / 2 * w[:, :-1].square().sum()
    (expected,) = torch.autograd.grad(loss, w)
    value, gradient = linear._objective(x, y, w.detach(), 0.3)
    assert value == pytest.approx(float(loss.detach()))
    torch.testing.assert_close(gradient, expected)


def test_converged_says_nothing_and_cut_short_warns(caplog: pytest.LogCaptureFixture) -> None:
    x, y = _blobs(100, spread=0.01)  # separable: the optimum is far away
    with caplog.at_level(logging.WARNING, "simlap.evaluate"):
        done = fit_lbfgs(x, y, num_classes=4, l2=1e-3)
    assert done.gradient <= 1e-6
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "simlap.evaluate"):
        short = fit_lbfgs(x, y, num_classes=4, l2=1e-3, max_iterations=3)
    assert short.gradient > 1e-6
    assert "not converged after 3 iterations" in caplog.text


def test_l2_is_searched_on_the_held_out_tenth() -> None:
    x, y = _blobs(60, d=40, classes=3, spread=4.0)  # more noise than signal: little data wants a strong penalty
    best = fit_lbfgs(x, y, num_classes=3)
    assert best.l2 in L2_GRID
    assert best.l2 >= 1e-2
    easy, labels = _blobs(400, d=4, classes=3, spread=0.3)
    assert fit_lbfgs(easy, labels, num_classes=3).l2 < best.l2


def test_the_held_out_tenth_is_stratified_and_keyed() -> None:
    labels = torch.tensor([0] * 40 + [1] * 5 + [2] * 1 + [3] * 26)
    kept, held = held_out_tenth(labels, 0)
    assert sorted(torch.cat((kept, held)).tolist()) == list(range(72))
    assert torch.bincount(labels[held], minlength=4).tolist() == [4, 1, 0, 3]
    assert torch.equal(held, held_out_tenth(labels, 0)[1])
    assert not torch.equal(held, held_out_tenth(labels, 1)[1])
    with pytest.raises(DataError, match="l2: no class has two training images"):
        fit_lbfgs(torch.randn(3, 2), torch.arange(3), num_classes=3)


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_sgd_learns_and_is_keyed(optimizer: str) -> None:
    x, y = _blobs(300, spread=0.4)
    before = torch.random.get_rng_state()
    lr = 0.1 if optimizer == "sgd" else 100.0  # LARS moves weights by a thousandth of their norm
    fits = [
        fit_sgd(x, y, num_classes=4, epochs=40, batch_size=64, lr=lr, optimizer=optimizer, seed=seed)  # type: ignore[arg-type]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(fits[0].weight, fits[1].weight)
    assert not torch.equal(fits[0].weight, fits[2].weight)
    assert fits[0].top1(x, y) > 0.95


def test_sgd_comes_near_the_optimum() -> None:
    x, y = _blobs(200)
    optimum = fit_lbfgs(x, y, num_classes=4, l2=1e-2)
    near = fit_sgd(x, y, num_classes=4, epochs=200, batch_size=200, lr=1.0, weight_decay=1e-2)
    torch.testing.assert_close(near.weight.double(), optimum.weight, rtol=0.02, atol=0.01)


def test_a_constant_feature_has_no_say() -> None:
    x, y = _blobs(100)
    x = torch.cat((x, torch.full((100, 1), 0.1)), 1)
    fitted = fit_lbfgs(x, y, num_classes=4, l2=1e-3)
    far = x.clone()
    far[:, -1] = 1e6
    torch.testing.assert_close(fitted.logits(far), fitted.logits(x))


def test_errors() -> None:
    for fit in (fit_lbfgs, fit_sgd):
        with pytest.raises(ValueError, match="got 0 and 0"):
            fit(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), num_classes=2)


def _by_hand(
    x: Tensor, y: Tensor, *, epochs: int, lr: float, batch_size: int, weight_decay: float, lars: bool
) -> Tensor:
    """The weights of `fit_sgd`, in float64, the gradients by autograd."""
    n = len(x)
    x = x.double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    w = 0.01 * torch.randn(4, x.shape[1], generator=rng.generator(0, "linear", "init")).double()
    b = torch.zeros(4, dtype=torch.float64)
    moments, step, steps = [torch.zeros_like(w), torch.zeros_like(b)], 0, epochs * -(-n // batch_size)
    for epoch in range(epochs):
        order = torch.randperm(n, generator=rng.generator(0, "linear", "order", epoch))
        for rows in order.split(batch_size):
            rate = lr * batch_size / 256 * (1 + math.cos(math.pi * step / steps)) / 2
            w.requires_grad_(), b.requires_grad_()
            gradients = list(torch.autograd.grad(torch.nn.functional.cross_entropy(x[rows] @ w.T + b, y[rows]), (w, b)))
            w, b = w.detach(), b.detach()
            trust = 0.001 * w.norm() / (gradients[0].norm() + weight_decay * w.norm()) if lars else 1.0
            gradients[0] = (gradients[0] + weight_decay * w) * trust
            moments = [0.9 * m + g for m, g in zip(moments, gradients, strict=True)]
            steps_of = moments if lars else [g + 0.9 * m for g, m in zip(gradients, moments, strict=True)]
            w, b = w - rate * steps_of[0], b - rate * steps_of[1]
            step += 1
    return torch.cat((w, b[:, None]), 1)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_sgd_is_the_loop(optimizer: Literal["sgd", "lars"], weight_decay: float) -> None:
    """Learning rates scaled with the batch; LARS adapts the weights, decaying or not, and not the biases."""
    x, y = _blobs(50)
    lr = 0.5 if optimizer == "sgd" else 50.0
    settings: dict[str, Any] = {"epochs": 3, "lr": lr, "batch_size": 16, "weight_decay": weight_decay}
    found = fit_sgd(x, y, num_classes=4, optimizer=optimizer, **settings)
    expected = _by_hand(x, y, **settings, lars=optimizer == "lars")
    got = torch.cat((found.weight, found.bias[:, None]), 1).double()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_few_steps_of_lars_are_warned_of(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _blobs(50)
    with caplog.at_level(logging.WARNING, "simlap.evaluate"):
        fit_sgd(x, y, num_classes=4, epochs=2, batch_size=16)
        monkeypatch.setattr(linear, "_FEW_LARS_STEPS", 8)
        fit_sgd(x, y, num_classes=4, epochs=2, batch_size=16, optimizer="lars")
        assert not caplog.records
        monkeypatch.setattr(linear, "_FEW_LARS_STEPS", 9)
        fit_sgd(x, y, num_classes=4, epochs=2, batch_size=16, optimizer="lars")
    assert "8 steps of LARS" in caplog.text


def test_l2_is_chosen_by_accuracy_and_then_by_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each penalty is given a classifier of one feature."""
    y = torch.arange(40) % 2
    x = 2.0 * y - 1
    odd = int(held_out_tenth(y, 0)[1][y[held_out_tenth(y, 0)[1]] == 1][0])
    x[odd] = -0.1  # of class 1: right with a threshold below that, wrong with one at 0
    fits = {1.0: (0.05, 0.5), 1e-1: (0.1, 0.5), 1e-2: (2.0, 0.0)}  # slope, and by how much the threshold lies below 0
    monkeypatch.setattr(linear, "L2_GRID", tuple(fits))

    def given(x: Tensor, labels: Tensor, classes: int, l2: float, *_: Any, **__: Any) -> tuple[Tensor, float]:
        slope, below = fits[l2]
        row = torch.tensor([slope, slope * below], dtype=torch.float64)
        return torch.stack((-row, row)), 0.0

    monkeypatch.setattr(linear, "_minimise", given)
    # 1e-2 has by far the least cross-entropy and one error; of the others, 0.1 is the surer
    assert linear._best_l2(x[:, None], y, 2, 0) == 1e-1
