"""The feature filter: each kind of gate against its formula, written out again here."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from simlap import rng
from simlap.config.schema import Gate, SignGate
from simlap.nn.filter import FeatureFilter, SignFilter, build_filter, gate_penalty
from simlap.nn.margin import ArcGradHead

C, D = 5, 7
LEARNT = ("sigmoid", "product", "gumbel", "stochastic")
LABELS, PAIRS = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 1, 0, 4, 2, 3])


def make(kind: str, **fields: object) -> FeatureFilter:
    sizes = {} if kind == "open" else {"embedding_dim": 8, "hidden_dim": 16}
    gate: Gate = TypeAdapter(Gate).validate_python({"kind": kind, **sizes, **fields})
    return build_filter(gate, C, D)


def m(module: FeatureFilter, v: Tensor) -> Tensor:
    """docs/method.md: ReLU, BN, Linear, ReLU, BN, Linear; batch statistics, without touching the running ones."""
    first, second = (layer for layer in module.modules() if isinstance(layer, nn.Linear))

    def norm(x: Tensor) -> Tensor:
        if module.training:
            return (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
        return x / math.sqrt(1 + 1e-5)  # running mean 0 and variance 1

    out = second(norm(first(norm(v.relu())).relu()))
    assert isinstance(out, Tensor)
    return out


def embedding(module: FeatureFilter) -> Tensor:
    (table,) = (layer for layer in module.modules() if isinstance(layer, nn.Embedding))
    weight: Tensor = table.weight
    return weight


def mixed(module: FeatureFilter) -> Tensor:
    return m(module, (embedding(module)[LABELS] + embedding(module)[PAIRS]) / 2)


def noise_for(module: FeatureFilter) -> Tensor | None:
    return module.draw_noise(len(LABELS), rng.generator(0, "noise"))


def test_open_gate() -> None:
    module = make("open")
    made = module(LABELS, PAIRS)
    assert torch.equal(made.gates, torch.ones(1, D))
    assert torch.equal(made.of_rows, torch.ones(6, D))
    assert made.counts is not None
    assert made.counts.tolist() == [6]
    assert made.regulariser == 0
    assert not list(module.parameters())
    assert noise_for(module) is None


@pytest.mark.parametrize("training", [True, False])
def test_sigmoid(training: bool) -> None:
    module = make("sigmoid").train(training)
    expected = mixed(module).sigmoid()
    torch.testing.assert_close(module(LABELS, PAIRS).gates, expected)
    assert module(LABELS, PAIRS).regulariser == 0
    assert noise_for(module) is None


@pytest.mark.parametrize("training", [True, False])
def test_product_normalises_both_sides_together(training: bool) -> None:
    module = make("product").train(training)
    sides = m(module, embedding(module)[torch.cat([LABELS, PAIRS])]).sigmoid()
    torch.testing.assert_close(module(LABELS, PAIRS).gates, sides[:6] * sides[6:])


@pytest.mark.parametrize("noise", ["logistic", "gumbel"])
@pytest.mark.parametrize("hard", [False, True])
def test_gumbel(noise: str, hard: bool) -> None:
    module = make("gumbel", noise=noise, temperature=0.7, hard=hard)
    drawn = noise_for(module)
    assert drawn is not None
    soft = ((mixed(module) + drawn) / 0.7).sigmoid()
    gates = module(LABELS, PAIRS, drawn).gates
    torch.testing.assert_close(gates, (soft > 0.5).float() if hard else soft)
    weights = torch.randn(6, D)
    for_gates, for_soft = (
        torch.autograd.grad((x * weights).sum(), embedding(module), retain_graph=True)[0] for x in (gates, soft)
    )
    torch.testing.assert_close(for_gates, for_soft)  # straight through: the soft gate's gradient


def test_gumbel_at_evaluation() -> None:
    for hard in (False, True):
        module = make("gumbel", temperature=0.7, hard=hard).eval()
        soft = (mixed(module) / 0.7).sigmoid()
        torch.testing.assert_close(module(LABELS, PAIRS).gates, (soft > 0.5).float() if hard else soft)


@pytest.mark.parametrize("training", [True, False])
def test_stochastic(training: bool) -> None:
    module = make("stochastic", sigma=0.4, regulariser=0.01).train(training)
    drawn = noise_for(module)
    assert drawn is not None
    mu = mixed(module)
    gates, regulariser, *_ = module(LABELS, PAIRS, drawn)
    torch.testing.assert_close(gates, ((mu + 0.4 * drawn if training else mu) + 0.5).clamp(0, 1))
    phi = torch.distributions.Normal(0.0, 1.0).cdf((mu + 0.5) / 0.4)
    torch.testing.assert_close(regulariser, 0.01 * phi.sum())
    (gradient,) = torch.autograd.grad(regulariser, embedding(module))
    assert gradient.abs().sum() > 0


def test_regulariser_is_additive_over_shards() -> None:
    """A sum, not a mean: uneven shards add up to the whole (with fixed batch norm statistics)."""
    module = make("stochastic", regulariser=1.0).eval()
    parts = module(LABELS[:4], PAIRS[:4]).regulariser + module(LABELS[4:], PAIRS[4:]).regulariser
    torch.testing.assert_close(parts, module(LABELS, PAIRS).regulariser)


@pytest.mark.parametrize("kind", LEARNT)
def test_gates_lie_in_the_unit_interval_and_teach_every_parameter(kind: str) -> None:
    module = make(kind)
    gates, regulariser, *_ = module(LABELS, PAIRS, noise_for(module))
    assert gates.shape == (6, D)
    assert ((gates >= 0) & (gates <= 1)).all()
    ((gates * torch.randn(6, D)).sum() + regulariser).backward()
    for name, p in module.named_parameters():
        assert p.grad is not None, name


@pytest.mark.parametrize("kind", LEARNT)
def test_gate_of_a_pair_does_not_depend_on_its_order(kind: str) -> None:
    module = make(kind).eval()
    torch.testing.assert_close(module(LABELS, PAIRS).gates, module(PAIRS, LABELS).gates)


@pytest.mark.parametrize("kind", ["gumbel", "stochastic"])
def test_missing_noise_is_an_error_in_training_only(kind: str) -> None:
    module = make(kind)
    with pytest.raises(ValueError, match=r"noise of shape \[6, 7\].*not None"):
        module(LABELS, PAIRS)
    with pytest.raises(ValueError, match=r"not \[1, 7\]"):
        module(LABELS, PAIRS, torch.zeros(1, D))
    assert torch.isfinite(module.eval()(LABELS, PAIRS).gates).all()


@pytest.mark.parametrize(
    ("kind", "fields", "mean", "variance"),
    [
        ("gumbel", {"noise": "logistic"}, 0.0, torch.pi**2 / 3),
        ("gumbel", {"noise": "gumbel"}, 0.5772, torch.pi**2 / 6),
        ("stochastic", {}, 0.0, 1.0),
    ],
)
def test_noise_has_its_distribution(kind: str, fields: dict[str, str], mean: float, variance: float) -> None:
    module = make(kind, **fields)
    noise = module.draw_noise(20_000, rng.generator(0))
    assert noise is not None
    assert noise.shape == (20_000, D)
    assert noise.dtype == torch.float32
    assert torch.isfinite(noise).all()
    assert noise.mean().item() == pytest.approx(mean, abs=0.02)
    assert noise.var().item() == pytest.approx(variance, rel=0.02)
    again = module.draw_noise(20_000, rng.generator(0))
    assert again is not None
    assert torch.equal(noise, again)


def test_relaxed_bernoulli_opens_with_the_probability_of_its_logit() -> None:
    """P(logit + logistic noise > 0) = sigmoid(logit): what makes the logistic form the right one."""
    module = make("gumbel")
    noise = module.draw_noise(50_000, rng.generator(1))
    assert noise is not None
    assert (noise + 1.3 > 0).float().mean().item() == pytest.approx(torch.tensor(1.3).sigmoid().item(), abs=0.005)


def test_gates_are_float32_under_autocast() -> None:
    module = make("sigmoid")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(LABELS, PAIRS).gates.dtype == torch.float32


def test_float64_stays_float64() -> None:
    module = make("gumbel").double()
    assert module(LABELS, PAIRS, noise_for(module)).gates.dtype == torch.float64


class Fused(nn.Module):
    """A classifier and the gates made from it, as fuse holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = ArcGradHead(4, C, hidden_dim=6, embed_dim=D)
        self.filter = build_filter(SignGate(kind="sign"), C, D, weights=self.head.sign_weights)


def test_sign_gates_open_where_both_weights_have_one_sign() -> None:
    model = Fused()
    with torch.no_grad():
        model.head.classifier.weight[0, :3] = torch.tensor([0.0, 1e-30, -1e-30])  # squares of these do not exist
    gates, regulariser, *_ = model.filter(LABELS, PAIRS)
    rows = model.head.classifier.weight.double()
    for gate, y, p in zip(gates, LABELS, PAIRS, strict=True):
        assert torch.equal(gate, (rows[y] * rows[p] > 0).float())
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    assert gates.dtype == torch.float32
    assert regulariser == 0
    own = model.filter(LABELS, LABELS).gates
    assert torch.equal(own[0], torch.tensor([0.0] + [1.0] * (D - 1)))  # a class with itself: all but the zero weight
    assert torch.equal(own[1:5], torch.ones(4, D))


def test_sign_gates_carry_no_gradient_and_own_no_parameter() -> None:
    model = Fused()
    assert not model.filter(LABELS, PAIRS).gates.requires_grad
    assert not list(model.filter.parameters())
    assert not [name for name in model.state_dict() if name.startswith("filter")]
    assert noise_for(model.filter) is None


def test_sign_gates_follow_the_classifier_of_their_own_copy() -> None:
    """A moving average of the weights is a deep copy: its gates are those of the averaged classifier."""
    model = Fused()
    twin = copy.deepcopy(model)
    before = model.filter(LABELS, PAIRS).gates
    with torch.no_grad():
        model.head.classifier.weight[1] *= -1
    assert torch.equal(twin.filter(LABELS, PAIRS).gates, before)
    turned = model.filter(LABELS, PAIRS).gates
    assert torch.equal(turned[0], 1 - before[0])  # classes 0 and 1
    assert torch.equal(turned[1], before[1])  # class 1 with itself
    with torch.no_grad():
        twin.head.classifier.weight[1] *= -1
    assert torch.equal(twin.filter(LABELS, PAIRS).gates, turned)


def test_sign_gates_need_a_classifier() -> None:
    with pytest.raises(ValueError, match="sign gates are made from a classifier's weight rows"):
        build_filter(SignGate(kind="sign"), C, D)
    assert isinstance(build_filter(SignGate(kind="sign"), C, D, weights=lambda: torch.ones(C, D)), SignFilter)


def test_gate_penalty() -> None:
    """1 for a row of halves, 0 for a row of zeros and ones; the sum over rows, so that shards add up."""
    gates = torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.25, 1.0]], requires_grad=True)
    penalty = gate_penalty(gates)
    torch.testing.assert_close(penalty, torch.tensor(1.0 + 0.0 + 0.375))
    torch.testing.assert_close(gate_penalty(gates[:1]) + gate_penalty(gates[1:]), penalty)
    (gradient,) = torch.autograd.grad(penalty, gates)
    torch.testing.assert_close(gradient, 4 * (1 - 2 * gates.detach()) / 2)
    assert gate_penalty(gates[:0]) == 0
    counts = torch.tensor([2, 0, 3])
    torch.testing.assert_close(gate_penalty(gates, counts), gate_penalty(gates.repeat_interleave(counts, 0)))
