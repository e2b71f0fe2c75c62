"""The experiment: all sections together, and what must agree between them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from simlap.config.schema.base import Strict, wrong
from simlap.config.schema.data import Data, PKSampling
from simlap.config.schema.evaluation import KNN, Collapse, Evaluation, Probe
from simlap.config.schema.model import Backbone, Fuse, Method, SimLAP, SupCon
from simlap.config.schema.plugins import MethodPlugin
from simlap.config.schema.training import Checkpointing, Optim, Resources, Train


class Experiment(Strict):
    """One run, fully specified."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the experiment, and of the MLflow experiment `simlap run` records into."""
    schema_version: Literal[1] = 1
    """Version of this format."""
    seed: int = 0
    """Seed of every random draw (initialisation, order, augmentation, pairs, noise)."""
    pretrain: Experiment | None = None
    """An earlier stage: the backbone starts from what this experiment learns. In a file: the path of an experiment file, relative
    to it. The stage is a run of its own, shared by all that start from it; its seed is this experiment's."""
    data: Data
    backbone: Backbone = Backbone()
    method: Method = SimLAP(kind="simlap")
    optim: Optim = Optim()
    train: Train = Train()
    checkpoint: Checkpointing = Checkpointing()
    evaluate: tuple[Evaluation, ...] = (KNN(kind="knn"), Probe(kind="probe"), Collapse(kind="collapse"))
    """What is measured, on the validation split along the way and on the test split at the end."""
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _sections_agree(self) -> Experiment:
        if self.optim.warmup_epochs > self.train.epochs:
            raise wrong(
                "optim.warmup_epochs",
                self.optim.warmup_epochs,
                "must not be more than train.epochs ({epochs})",
                epochs=self.train.epochs,
            )
        if self.data.repeated_augmentation >= self.train.batch_size:
            raise wrong(
                "data.repeated_augmentation",
                self.data.repeated_augmentation,
                "must be less than train.batch_size ({batch_size}): a batch needs at least two different images",
                batch_size=self.train.batch_size,
            )
        kinds = [evaluation.kind for evaluation in self.evaluate]
        for i, kind in enumerate(kinds):
            if kind in kinds[:i]:
                raise wrong(f"evaluate.{i}.kind", kind, "is given twice; the metrics' names would be the same")
        return self

    @model_validator(mode="after")
    def _batches_suit_the_method(self) -> Experiment:
        sampling, method, augment = self.data.sampling, self.method, self.data.augment
        if isinstance(sampling, PKSampling) and sampling.classes * sampling.images != self.train.batch_size:
            raise wrong(
                "train.batch_size",
                self.train.batch_size,
                "must be data.sampling.classes x data.sampling.images ({p} x {k})",
                p=sampling.classes,
                k=sampling.images,
            )
        if method.kind == "simclr" and augment.views < 2:
            raise wrong(
                "data.augment.views", augment.views, "must be 2 or more with method.kind: simclr, which compares views"
            )
        if isinstance(method, SupCon) and method.variant == "one_to_one":
            if not isinstance(sampling, PKSampling):
                raise wrong("data.sampling.kind", sampling.kind, "must be pk with method.variant: one_to_one")
            if sampling.images * augment.views < 2:
                raise wrong(
                    "data.sampling.images", sampling.images, "must be 2 or more with method.variant: one_to_one"
                )
        if augment.mixes and method.kind != "supervised":
            on = "mixup" if augment.mixup > 0 else "cutmix"
            raise wrong(
                f"data.augment.{on}",
                getattr(augment, on),
                "mixes labels, which method.kind: {kind} cannot use; only supervised can",
                kind=method.kind,
            )
        if any(e.kind == "gates" for e in self.evaluate) and not self.has_gates:
            place = next(i for i, e in enumerate(self.evaluate) if e.kind == "gates")
            raise wrong(
                f"evaluate.{place}.kind", "gates", "there are no gates with method.kind: {kind}", kind=method.kind
            )
        return self

    @model_validator(mode="after")
    def _has_statistics_to_freeze(self) -> Experiment:
        if self.backbone.frozen_norm and self.pretrain is None and self.backbone.weights is None:
            raise wrong(
                "backbone.frozen_norm",
                True,
                "needs backbone.weights or pretrain: running statistics that were never learnt do not normalise",
            )
        return self

    @model_validator(mode="after")
    def _stages_agree(self) -> Experiment:
        if self.pretrain is None:
            return self
        if self.backbone.weights is not None:
            raise wrong("backbone.weights", self.backbone.weights, "cannot be given together with pretrain")
        if self.pretrain.seed != self.seed:
            raise wrong("pretrain.seed", self.pretrain.seed, "is the experiment's ({seed})", seed=self.seed)
        if self.pretrain.backbone.name != self.backbone.name:
            raise wrong(
                "backbone.name",
                self.backbone.name,
                "must be that of pretrain ({name}), whose weights it starts from",
                name=self.pretrain.backbone.name,
            )
        return self

    @property
    def has_gates(self) -> bool:
        """Whether the method has gates that can be looked at."""
        if isinstance(self.method, MethodPlugin):
            return self.method.has_gates
        return isinstance(self.method, SimLAP | Fuse)

    @property
    def stages(self) -> tuple[Experiment, ...]:
        """The experiment's stages in the order they run; itself last."""
        return (*(self.pretrain.stages if self.pretrain else ()), self)

    def with_seed(self, seed: int) -> Experiment:
        """A copy with another seed, in all its stages."""
        pretrain = self.pretrain.with_seed(seed) if self.pretrain else None
        return self.model_copy(update={"seed": seed, "pretrain": pretrain})

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """`train.precision` with `auto` resolved from the file alone, so that the identity does not depend on the machine."""
        if self.train.precision == "auto":
            return "bf16" if self.resources.gpus > 0 else "fp32"
        return self.train.precision
