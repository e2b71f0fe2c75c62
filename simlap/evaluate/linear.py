"""A fresh linear classifier on frozen features: logistic regression to its optimum (L-BFGS), or by SGD as the authors do.

n rows, d features, C classes. The features are standardised with the training part's mean and standard deviation: for a
linear classifier that is a frozen batch norm without affine, and it makes one L2 penalty mean the same for every backbone.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from simlap import rng
from simlap.errors import DataError

L2_GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Searched from the strongest on, each solution being the start of the next."""
_MAX_LOGITS = 1 << 24  # float64: 128 MiB at a time
_SEARCH_TOLERANCE, _SEARCH_ITERATIONS = 1e-4, 200
_FEW_LARS_STEPS = 1000
_log = logging.getLogger("simlap.evaluate")


@dataclass(frozen=True)
class LinearClassifier:
    """Standardisation and a linear map."""

    mean: Tensor
    """[d], of the training features."""
    scale: Tensor
    """[d], 1 / standard deviation of the training features; 0 for a constant feature."""
    weight: Tensor
    """[C, d]"""
    bias: Tensor
    """[C]"""
    l2: float
    """The penalty, or the weight decay, it was fitted with."""
    gradient: float = 0.0
    """Largest absolute entry of the objective's gradient where the solver ended (L-BFGS)."""

    def logits(self, features: Tensor) -> Tensor:
        """[n, d] -> [n, C]."""
        return F.linear((features.float() - self.mean) * self.scale, self.weight.float(), self.bias.float())

    def top1(self, features: Tensor, labels: Tensor) -> float:
        """Accuracy in [0, 1]."""
        right = (self.logits(features).argmax(1) == labels).double()
        return float(right.mean())


def fit_lbfgs(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    l2: float | None = None,
    seed: int = 0,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> LinearClassifier:
    """Multinomial logistic regression: the least of mean cross-entropy + l2 / 2 * sum of squared weights (biases are free).

    In float64. Converged means that no entry of the gradient exceeds `tolerance`; where `max_iterations` do not get
    there, a warning is logged with what was reached.

    Args:
        features: [n, d].
        labels: int64 [n].
        l2: None searches `L2_GRID` on a stratified tenth, held out, by accuracy and then by cross-entropy, and fits
            all rows with the best.
        seed: of the held-out tenth.
    """
    _check(features, labels)
    if l2 is None:
        l2 = _best_l2(features, labels, num_classes, seed)
    mean, scale = _standardisation(features)
    w, gradient = _minimise(
        (features.float() - mean) * scale, labels, num_classes, l2, None, tolerance=tolerance, most=max_iterations
    )
    if gradient > tolerance:
        _log.warning(
            "the linear classifier has not converged after %d iterations of L-BFGS (l2 %g): largest gradient %.2g, wanted %.2g",
            max_iterations, l2, gradient, tolerance,
        )  # fmt: skip
    return LinearClassifier(mean, scale, w[:, :-1], w[:, -1], l2, gradient)


def fit_sgd(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    epochs: int = 90,
    lr: float = 0.1,
    batch_size: int = 1024,
    weight_decay: float = 0.0,
    optimizer: Literal["sgd", "lars"] = "sgd",
    seed: int = 0,
) -> LinearClassifier:
    """Momentum 0.9 (Nesterov, or LARS as in You et al. 2017) and a cosine to 0 per step, in float32, without augmentation.

    Every epoch is a keyed permutation; its last batch may be smaller. A batch is never larger than the training part. With
    LARS, a warning is logged where there are fewer than 1000 steps.

    Args:
        features: [n, d].
        labels: int64 [n].
        lr: for a batch of 256; scaled with the batch.
        weight_decay: of the weights, not of the biases.
    """
    _check(features, labels)
    mean, scale = _standardisation(features)
    x, n = (features.float() - mean) * scale, len(features)
    batch_size = min(batch_size, n)
    start = torch.randn(num_classes, x.shape[1], generator=rng.generator(seed, "linear", "init"))
    weight = (0.01 * start).to(x.device).requires_grad_()
    bias = torch.zeros(num_classes, device=x.device, requires_grad=True)
    groups: list[dict[str, Any]] = [
        {"params": [weight], "weight_decay": weight_decay},
        {"params": [bias], "weight_decay": 0.0},
    ]
    peak, steps = lr * batch_size / 256, epochs * math.ceil(n / batch_size)
    if optimizer == "lars" and steps < _FEW_LARS_STEPS:
        _log.warning(
            "the linear classifier gets %d steps of LARS, which moves it by about a thousandth of its norm times lr in each and "
            "so needs thousands: raise epochs or lr, lower batch_size, or take optimizer: sgd",
            steps,
        )
    solver = _lars(groups, peak) if optimizer == "lars" else torch.optim.SGD(groups, peak, momentum=0.9, nesterov=True)
    step = 0
    with torch.enable_grad():
        for epoch in range(epochs):
            order = torch.randperm(n, generator=rng.generator(seed, "linear", "order", epoch)).to(x.device)
            for rows in order.split(batch_size):
                for group in solver.param_groups:
                    group["lr"] = peak * (1 + math.cos(math.pi * step / steps)) / 2
                loss = F.cross_entropy(F.linear(x[rows], weight, bias), labels[rows])
                solver.zero_grad(set_to_none=True)
                loss.backward()
                solver.step()
                step += 1
    return LinearClassifier(mean, scale, weight.detach(), bias.detach(), weight_decay)


def _lars(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """timm's, made to adapt the weights even where they do not decay; the biases, in the second group, are not adapted."""
    from timm.optim.lars import Lars  # takes seconds to import

    groups[0]["always_adapt"] = True
    return Lars(groups, lr=lr, momentum=0.9)


def held_out_tenth(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of the two parts, ascending: of every class of m > 1 rows, max(1, round(m / 10)) are held out, drawn by a key.

    Args:
        labels: int64 [n].
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    labels = labels.cpu()
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        count = max(1, math.floor(len(rows) / 10 + 0.5)) if len(rows) > 1 else 0
        order = torch.randperm(len(rows), generator=rng.generator(seed, "linear", "held out", label))
        held[rows[order[:count]]] = True
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def _best_l2(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> float:
    kept, held = (rows.to(features.device) for rows in held_out_tenth(labels, seed))
    if not len(held):
        raise DataError(
            "no class has two training images, so no part can be held out to choose l2; give `l2`", key="l2"
        )
    mean, scale = _standardisation(features[kept])
    x = (features[kept].float() - mean) * scale
    start, best = None, (-1.0, -math.inf, 0.0)
    for l2 in L2_GRID:
        start, _ = _minimise(
            x, labels[kept], num_classes, l2, start, tolerance=_SEARCH_TOLERANCE, most=_SEARCH_ITERATIONS
        )
        classifier = LinearClassifier(mean, scale, start[:, :-1], start[:, -1], l2)
        loss = float(F.cross_entropy(classifier.logits(features[held]), labels[held]))
        best = max(best, (classifier.top1(features[held], labels[held]), -loss, l2))
    return best[2]


def _minimise(
    x: Tensor, labels: Tensor, num_classes: int, l2: float, start: Tensor | None, *, tolerance: float, most: int
) -> tuple[Tensor, float]:
    """[C, d + 1] float64, the biases last, and the largest absolute entry of the gradient there."""
    shape = (num_classes, x.shape[1] + 1)
    w = torch.zeros(shape, dtype=torch.float64, device=x.device) if start is None else start.clone()
    w.requires_grad_()
    solver = torch.optim.LBFGS(
        [w], max_iter=most, max_eval=2 * most, tolerance_grad=tolerance, tolerance_change=0.0, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective() -> float:
        loss, w.grad = _objective(x, labels, w.detach(), l2)
        return loss

    solver.step(objective)
    objective()
    assert w.grad is not None
    return w.detach(), float(w.grad.abs().max())


def _objective(x: Tensor, labels: Tensor, w: Tensor, l2: float) -> tuple[float, Tensor]:
    """Value and gradient in float64, in chunks: float64 copies of all features and logits may not fit."""
    loss = w.new_zeros(())
    gradient = torch.zeros_like(w)
    rows = max(1, _MAX_LOGITS // max(w.shape))
    for part, classes in zip(x.split(rows), labels.split(rows), strict=True):
        wide = part.double()
        log_p = (wide @ w[:, :-1].T + w[:, -1]).log_softmax(1)  # [b, C]
        loss -= log_p.gather(1, classes[:, None]).sum()
        error = log_p.exp_()
        error.scatter_add_(1, classes[:, None], error.new_full((len(classes), 1), -1.0))
        gradient[:, :-1] += error.T @ wide
        gradient[:, -1] += error.sum(0)
    gradient /= len(x)
    gradient[:, :-1] += l2 * w[:, :-1]
    return float(loss / len(x) + l2 / 2 * w[:, :-1].square().sum()), gradient


def _standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation, [d] float32 each; a constant feature gets 0 and so no say."""
    n = len(features)
    total = features.new_zeros(features.shape[1], dtype=torch.float64)
    square = torch.zeros_like(total)
    rows = max(1, _MAX_LOGITS // features.shape[1])
    for part in features.split(rows):
        total += part.double().sum(0)
    mean = total / n
    for part in features.split(rows):
        square += (part.double() - mean).square().sum(0)
    std = (square / n).sqrt()
    constant = std <= 1e-6 * mean.abs() + 1e-12  # float32 rounding of one value
    return mean.float(), torch.where(constant, 0.0, 1 / std).float()


def _check(features: Tensor, labels: Tensor) -> None:
    if not len(features) or len(features) != len(labels):
        raise ValueError(f"a linear classifier needs as many features as labels, got {len(features)} and {len(labels)}")
