"""The `backbone` and `method` sections: what is trained, and on which objective."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from simlap.config.schema.base import Count, Fraction, NonNegative, Positive, Strict, wrong
from simlap.config.schema.plugins import GatePlugin, MethodPlugin, Pluggable

Pairs = Literal["arbitrary", "identical", "distinct"]
Temperature = Annotated[float, Field(ge=0.01)]


class Backbone(Strict):
    """The network whose features are learnt."""

    name: str = "resnet18"
    """A timm model name, or `conv3` (a small three-convolution network for small images)."""
    kwargs: dict[str, JsonValue] = {}
    """Keyword arguments for `timm.create_model` (or `conv3`), such as `drop_path_rate`."""
    stem: Literal["default", "small"] = "default"
    """`small`, for images of some 32 pixels: a ResNet begins with one 3x3 convolution of stride 1 and no pooling."""
    frozen_norm: bool = False
    """Batch norm by the running statistics, which stay as they are (with `weights` or `pretrain`)."""
    weights: str | None = None
    """Start from these weights: a file that torch or safetensors can read without running code from it, a run directory of
    simlap, or one of its checkpoints. Path as in `data`."""
    key_prefix: str = ""
    """Of the names in `weights` that belong to the backbone, such as `module.backbone.`."""


class _FilterMLP(Strict):
    embedding_dim: Count = 512
    """Width of the label embedding E."""
    hidden_dim: Count = 1024
    """Width of the filter's hidden layer."""


class OpenGate(Strict):
    """Filter off: g = 1."""

    kind: Literal["open"]


class SigmoidGate(_FilterMLP):
    """The paper's filter: g = sigmoid(m((E[y] + E[p]) / 2))."""

    kind: Literal["sigmoid"]


class ProductGate(_FilterMLP):
    """g = sigmoid(m(E[y])) * sigmoid(m(E[p]))."""

    kind: Literal["product"]


class GumbelGate(_FilterMLP):
    """Relaxed Bernoulli gate: g = sigmoid((m + noise) / temperature)."""

    kind: Literal["gumbel"]
    noise: Literal["logistic", "gumbel"] = "logistic"
    """`logistic` (relaxed Bernoulli) or `gumbel` (one Gumbel sample, the authors' form)."""
    temperature: Positive = 1.0
    """Relaxation temperature of the gate."""
    hard: bool = False
    """Binary gates with straight-through gradients."""


class StochasticGate(_FilterMLP):
    """Gaussian-based gate (Yamada et al. 2020): g = clamp(mu + sigma * eps + 0.5, 0, 1), mu = m(...)."""

    kind: Literal["stochastic"]
    sigma: Positive = 0.5
    """Standard deviation of the noise."""
    regulariser: NonNegative = 1e-6
    """Weight of the expected number of open gates in the loss."""


class SignGate(Strict):
    """g = 1[w_y * w_p > 0] from the classifier's own weight rows, without gradient (fuse only)."""

    kind: Literal["sign"]


Gate = Annotated[
    OpenGate | SigmoidGate | ProductGate | GumbelGate | StochasticGate | SignGate | GatePlugin, Pluggable()
]


class SimLAP(Strict):
    """SimLAP (arXiv 2410.18200): InfoNCE in the subspace that the gate of a class pair opens."""

    kind: Literal["simlap"]
    pairs: Pairs = "arbitrary"
    """How each anchor gets its pair label: a permutation of the batch, its own class, or another class."""
    gate: Gate = SigmoidGate(kind="sigmoid")
    """The filter. `open` switches it off."""
    gate_penalty: NonNegative = 0.0
    """Weight of 4 g (1 - g), mean over D and the batch, which pushes the gates towards 0 and 1."""
    similarity: Literal["cosine", "masked_dot"] = "cosine"
    """Cosine inside the subspace (the paper), or the gated dot product of the normalised vectors."""
    embed_dim: Count = 256
    """D, the projector's output width."""
    projector_hidden_dim: Count = 2048
    """Width of the projector's hidden layer."""
    temperature: Temperature = 0.1
    """Softmax temperature of the logits; the initial one where it is learnt."""
    learn_temperature: bool = False
    """Learn 1 / temperature, kept at 100 or less."""
    keep_self: bool = True
    """Keep an anchor's own column among the positives where its pair label is its own label, as the authors do."""
    probe: Literal["detached", "joint"] = "detached"
    """The online linear probe: with the gradient into the backbone stopped, or not."""

    @model_validator(mode="after")
    def _has_no_classifier(self) -> SimLAP:
        if isinstance(self.gate, SignGate):
            raise wrong("gate.kind", "sign", "needs the classifier of method.kind: fuse")
        return self


class SupCon(Strict):
    """Supervised contrastive learning, the filterless relative of SimLAP."""

    kind: Literal["supcon"]
    variant: Literal["multi_positive", "one_to_one", "khosla"] = "multi_positive"
    """`multi_positive`: SimLAP's projector and loss with open gates (the published baseline). `one_to_one`: PK batches, a
    linear projector, and between every two of a class's K images one positive among P keys. `khosla`: the loss of Khosla et
    al. 2020, all keys but the anchor in the denominator."""
    pairs: Pairs = "identical"
    """Whose images are the positives: the anchor's own class, or the class of an arbitrary or a distinct pair label."""
    projector: Literal["mlp", "linear"] | None = None
    """`mlp` (SimLAP's) or `linear` (default: `linear` with `one_to_one`, else `mlp`)."""
    embed_dim: Count | None = None
    """D (default: 128 with `one_to_one`, else 256)."""
    projector_hidden_dim: Count = 2048
    """Width of the hidden layer of the `mlp` projector."""
    temperature: Temperature = 0.1
    """Softmax temperature of the logits; the initial one where it is learnt."""
    learn_temperature: bool = False
    """Learn 1 / temperature, kept at 100 or less."""
    keep_self: bool = True
    """`multi_positive` only: keep an anchor's own column among its positives."""
    probe: Literal["detached", "joint"] = "detached"
    """The online linear probe: with the gradient into the backbone stopped, or not."""

    @property
    def projector_kind(self) -> Literal["mlp", "linear"]:
        return self.projector or ("linear" if self.variant == "one_to_one" else "mlp")

    @property
    def width(self) -> int:
        return self.embed_dim or (128 if self.variant == "one_to_one" else 256)


class SimCLR(Strict):
    """SimCLR (Chen et al. 2020): NT-Xent over the views of each image, no labels. Needs `data.augment.views` >= 2."""

    kind: Literal["simclr"]
    embed_dim: Count = 128
    """D, the projector's output width."""
    projector_hidden_dim: Count = 2048
    """Width of the projector's hidden layer."""
    temperature: Temperature = 0.1
    """Softmax temperature of the logits; the initial one where it is learnt."""
    learn_temperature: bool = False
    """Learn 1 / temperature, kept at 100 or less."""
    probe: Literal["detached", "joint"] = "detached"
    """The online linear probe: with the gradient into the backbone stopped, or not."""


class Supervised(Strict):
    """Cross-entropy of a linear classifier. With `pretrain` or `backbone.weights`: fine-tuning."""

    kind: Literal["supervised"]
    label_smoothing: Fraction = 0.0
    """Share of the target that is spread over all classes."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Of the features, before the classifier."""


class Fuse(Strict):
    """Classification and subspace InfoNCE in one run: an ArcGrad head (Wu & Wang, IJCNN 2020), whose weights make the gates."""

    kind: Literal["fuse"]
    pairs: Pairs = "arbitrary"
    """How each anchor gets its pair label."""
    gate: Gate = SignGate(kind="sign")
    """The gates; `sign` takes them from the classifier's weights."""
    gate_penalty: NonNegative = 0.0
    """Weight of 4 g (1 - g), mean over D and the batch, which pushes the gates towards 0 and 1."""
    embed_dim: Count = 512
    """D, the width of the head's normalised features z."""
    projector_hidden_dim: Count = 2048
    """Width of the head's hidden layer."""
    temperature: Temperature = 0.1
    """Of both losses: s = 1 / temperature scales the ArcGrad logits too."""
    nce_weight: NonNegative = 1.0
    """Weight of the subspace InfoNCE beside the cross-entropy."""


Method = Annotated[SimLAP | SupCon | SimCLR | Supervised | Fuse | MethodPlugin, Pluggable()]
