"""The `evaluate` section: protocols that measure the features."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from simlap.config.schema.base import Count, NonNegative, Positive, Strict, wrong
from simlap.config.schema.data import Data


class _Evaluation(Strict):
    every_epochs: Count | None = None
    """Also on the validation split after every so many epochs (default: at the last epoch only)."""


class KNN(_Evaluation):
    """Weighted k-nearest-neighbour accuracy: cosine, weights exp(similarity / temperature)."""

    kind: Literal["knn"]
    k: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 10, 20, 50, 100)
    """Neighbourhood sizes; each gives `knn_top1_k<k>`."""
    headline: Count | None = None
    """The k that is also called `knn_top1` (default: the largest k up to 20)."""
    temperature: Positive = 0.07
    """Temperature of the weights."""

    @model_validator(mode="after")
    def _headline_is_computed(self) -> KNN:
        if self.headline is None and min(self.k) > 20:
            raise wrong("headline", None, "must be given, one of k = {k}: all are more than 20", k=list(self.k))
        if self.headline is not None and self.headline not in self.k:
            raise wrong("headline", self.headline, "must be one of k = {k}", k=list(self.k))
        return self

    @property
    def headline_k(self) -> int:
        """`headline`, or what its default stands for."""
        return self.headline or max(k for k in self.k if k <= 20)


class Probe(_Evaluation):
    """Accuracy and cross-entropy of the online head."""

    kind: Literal["probe"]
    every_epochs: Count | None = 1


class Collapse(_Evaluation):
    """Effective rank, participation ratio, alignment, uniformity and spread per dimension of the backbone's features.

    The projected features, which the loss sees, give `embedding_effective_rank`.
    """

    kind: Literal["collapse"]
    every_epochs: Count | None = 1


class Linear(_Evaluation):
    """A fresh linear classifier on frozen features, which are extracted once, without augmentation."""

    kind: Literal["linear"]
    solver: Literal["lbfgs", "sgd"] = "lbfgs"
    """`lbfgs`: multinomial logistic regression to its optimum. `sgd`: the authors', momentum and a cosine schedule."""
    l2: NonNegative | None = None
    """L2 penalty of `lbfgs` (default: the best of 1e-6, 1e-5, ..., 1 on a tenth of the training part, held out for it) and
    weight decay of `sgd` (default: 0)."""
    epochs: Count = 90
    """Of `sgd`."""
    lr: Positive = 0.1
    """Of `sgd`, for a batch of 256; scaled with `batch_size`."""
    batch_size: Count = 1024
    """Of `sgd`."""
    optimizer: Literal["sgd", "lars"] = "sgd"
    """Of `sgd`: Nesterov momentum, or the authors' LARS. The latter takes steps of a thousandth of the weights' norm and so needs
    thousands of them: on a small training part many epochs, a small batch or a large `lr`."""
    seed: int = 0
    """Of the held-out tenth and of the order of `sgd`."""


class FineTune(_Evaluation):
    """The whole backbone, trained on with a classifier: accuracy at the last epoch. Long runs are better said as a stage of their
    own (`pretrain`), which survives an interruption and can be studied."""

    kind: Literal["finetune"]
    epochs: Count = 30
    """Of fine-tuning."""
    lr: Positive = 0.01
    """Peak learning rate of SGD with Nesterov momentum; cosine, one epoch of warm-up."""
    weight_decay: NonNegative = 5e-4
    """No decay on biases and 1-d parameters."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.65
    """Each layer learns so many times slower than the one above it."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Of fine-tuning."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the target that is spread over all classes."""
    seed: int = 0
    """Of the classifier's initialisation, the order and the augmentation."""


class Gates(_Evaluation):
    """What the gates learnt of the classes: distances between classes from the gates of their pairs, held against the dataset's
    hierarchy and against the distances of the classes' mean features; a dendrogram and how well it fits."""

    kind: Literal["gates"]
    permutations: Count = 9999
    """Of the classes, for the p-values of the correlations (Mantel 1967)."""
    linkage: Literal["average", "complete", "single", "ward"] = "average"
    """Of the dendrogram."""
    hierarchy: dict[str, JsonValue] | None = None
    """Relations of the classes: a group's name to a list of class names or to smaller groups (default: the dataset's own, where
    it has one)."""


class Transfer(_Evaluation):
    """The same features on other datasets."""

    kind: Literal["transfer"]
    data: Annotated[dict[str, Data], Field(min_length=1)]
    """Dataset by name; the name is part of the metrics' names, `<name>_knn_top1` and so on."""
    protocols: Annotated[
        tuple[Annotated[KNN | Linear | FineTune, Field(discriminator="kind")], ...], Field(min_length=1)
    ] = (KNN(kind="knn"), Linear(kind="linear"))
    """What is measured on each of them."""

    @model_validator(mode="after")
    def _names_and_kinds_differ(self) -> Transfer:
        for name in self.data:
            if not name.replace("_", "").replace("-", "").isalnum():
                raise wrong("data", name, "names of datasets are made of letters, digits, - and _")
        kinds = [protocol.kind for protocol in self.protocols]
        for i, kind in enumerate(kinds):
            if kind in kinds[:i]:
                raise wrong(f"protocols.{i}.kind", kind, "is given twice; the metrics' names would be the same")
        return self


Evaluation = Annotated[KNN | Probe | Collapse | Linear | FineTune | Gates | Transfer, Field(discriminator="kind")]
