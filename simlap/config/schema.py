"""The experiment file as a frozen, strict tree of pydantic models.

Every field has its meaning below it. A field's default is part of the format: fields at their default are left out of the
canonical form (see `simlap.config.identity`), so changing a default means bumping `SCHEMA_VERSION`.
"""

from __future__ import annotations

from typing import Annotated, Literal, LiteralString

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

SCHEMA_VERSION = 1

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """Frozen, no unknown keys, no silent conversions (`lr: true` and `epochs: "5"` are errors)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _wrong(key: str, value: object, message: LiteralString, **words: object) -> PydanticCustomError:
    """An error at a key below the model whose validator raises it. `{name}` in the message stands for a word."""
    return PydanticCustomError("wrong_key", message, {"key": key, "value": value, **words})


# --- data ------------------------------------------------------------------------------------------------------------


class Augment(Strict):
    """Batched augmentation of the training images. Each copy of each image is drawn anew, every epoch."""

    crop_scale: tuple[Fraction, Fraction] = (0.7, 1.0)
    """Area of the random resized crop, as a share of the image: lowest, highest."""
    crop_ratio: tuple[Positive, Positive] = (0.75, 1.3333333333333333)
    """Aspect ratio of the crop: lowest, highest (drawn log-uniformly)."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    rotate: NonNegative = 0.0
    """Largest rotation in degrees, either way."""
    translate: Fraction = 0.0
    """Largest shift, as a share of the image's side, either way."""
    brightness: Fraction = 0.0
    """Largest relative change of brightness."""
    contrast: Fraction = 0.0
    """Largest relative change of contrast."""
    erase: Fraction = 0.0
    """Probability of random erasing (one rectangle of 2 to 33 % of the area, filled with normal noise)."""

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise _wrong(name, [low, high], "must be 0 < lowest <= highest")
        return self


class Validation(Strict):
    """A stratified part of the training set, the same for all seeds, on which all decisions are made."""

    fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of every class that is held out."""
    split_seed: int = 0
    """Seed of the split. Independent of the experiment's seed."""


class _Data(Strict):
    augment: Augment = Augment()
    """Augmentation of the training images."""
    repeated_augmentation: Count = 1
    """How often each drawn image appears in a batch, freshly augmented each time (`ra`)."""
    validation: Validation | Literal["none"] = Validation()
    """The validation split, or `none` (then decisions would be made on the test set, and tables say so)."""


class DigitsData(_Data):
    """The 8x8 digits that ship with scikit-learn: the first 1,400 images train, the last 397 test."""

    source: Literal["digits"]
    image_size: Count = 8
    """Side of the square training image."""


class ParquetData(_Data):
    """Parquet in the Hugging Face image layout: a struct{bytes, path} or binary image column and an integer label column.

    Local paths are relative to the folder the program is started in, `~` is the home folder; loading makes them absolute,
    since workers have working folders of their own.
    """

    source: Literal["parquet"]
    train: str
    """Training file, folder of shards, or any pyarrow.fs URI (`s3://...`)."""
    test: str
    """Test file, folder of shards, or URI."""
    image_size: Count = 32
    """Images are resized so that the shorter side has this length, then centre-cropped."""
    image_column: str | None = None
    """Name of the image column (default: `image` or `img`, whichever is there)."""
    label_column: str = "label"
    """Name of the label column."""


Data = Annotated[DigitsData | ParquetData, Field(discriminator="source")]


# --- model and method ------------------------------------------------------------------------------------------------


class Backbone(Strict):
    """The network whose features are learnt."""

    name: str = "resnet18"
    """A timm model name, or `conv3` (a small three-convolution network for small images)."""
    kwargs: dict[str, JsonValue] = {}
    """Keyword arguments for `timm.create_model` (or `conv3`)."""


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


Gate = Annotated[OpenGate | SigmoidGate | ProductGate | GumbelGate | StochasticGate, Field(discriminator="kind")]


class SimLAP(Strict):
    """SimLAP (arXiv 2410.18200): InfoNCE in the subspace that the gate of a class pair opens."""

    kind: Literal["simlap"]
    pairs: Literal["arbitrary", "identical", "distinct"] = "arbitrary"
    """How each anchor gets its pair label: a permutation of the batch, its own class, or another class."""
    gate: Gate = SigmoidGate(kind="sigmoid")
    """The filter. `open` switches it off."""
    similarity: Literal["cosine", "masked_dot"] = "cosine"
    """Cosine inside the subspace (the paper), or the gated dot product of the normalised vectors."""
    embed_dim: Count = 256
    """D, the projector's output width."""
    projector_hidden_dim: Count = 2048
    """Width of the projector's hidden layer."""
    temperature: Annotated[float, Field(ge=0.01)] = 0.1
    """Softmax temperature of the logits."""
    keep_self: bool = True
    """Keep an anchor's own column among the positives where its pair label is its own label, as the authors do."""
    probe: Literal["detached", "joint"] = "detached"
    """The online linear probe: with the gradient into the backbone stopped, or not."""


class Optim(Strict):
    """Optimiser and learning-rate schedule (per iteration)."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """`adam` has coupled L2 decay, `adamw` decoupled decay, `sgd` Nesterov momentum. No decay on biases and 1-d parameters."""
    lr: Positive = 1e-3
    """Peak learning rate, for the global batch."""
    weight_decay: NonNegative = 5e-4
    """Weight decay of matrices and label embeddings."""
    momentum: Fraction = 0.9
    """Momentum of `sgd`."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: cosine from `lr` to `min_lr`, not shifted by the warm-up, or constant."""
    warmup_epochs: NonNegative = 2.0
    """Linear warm-up from `warmup_lr`."""
    warmup_lr: NonNegative = 1e-6
    """Learning rate of the first step of the warm-up."""
    min_lr: NonNegative = 1e-5
    """Learning rate at the end of the cosine."""

    @model_validator(mode="after")
    def _falls_from_the_peak(self) -> Optim:
        if self.schedule == "cosine" and self.min_lr >= self.lr:
            raise _wrong(
                "min_lr", self.min_lr, "must be less than lr ({lr}), from which the cosine falls", lr=f"{self.lr:g}"
            )
        if self.warmup_epochs > 0 and self.warmup_lr > self.lr:
            raise _wrong(
                "warmup_lr",
                self.warmup_lr,
                "must not be more than lr ({lr}), to which the warm-up rises",
                lr=f"{self.lr:g}",
            )
        return self


class Train(Strict):
    """Length, batch and precision."""

    epochs: Count = 50
    """Number of epochs. The schedule is stretched over them."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Rows of the *global* batch. Worker r of W takes rows r::W."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 autocast where the file asks for GPUs, fp32 otherwise. The loss is always at least fp32."""


# --- around the training ---------------------------------------------------------------------------------------------


class Checkpointing(Strict):
    """When the training state is saved. Not part of a run's identity."""

    every_epochs: Count = 1
    """Save after every so many epochs (and always after the last)."""
    keep: Annotated[int, Field(ge=2)] = 2
    """How many checkpoints are kept (at least 2: one may be damaged)."""
    on_stop: bool = True
    """Save when the run is asked to stop in mid-epoch."""


class _Evaluation(Strict):
    every_epochs: Count | None = None
    """Also on the validation split after every so many epochs (default: at the last epoch only)."""


class KNN(_Evaluation):
    """Weighted k-nearest-neighbour accuracy: cosine, weights exp(similarity / temperature)."""

    kind: Literal["knn"]
    k: tuple[Count, ...] = (1, 10, 20, 50, 100)
    """Neighbourhood sizes; each gives `knn_top1_k<k>`."""
    headline: Count = 20
    """The k that is also called `knn_top1`. The default stands for the largest k up to 20."""
    temperature: Positive = 0.07
    """Temperature of the weights."""

    @model_validator(mode="after")
    def _headline_is_computed(self) -> KNN:
        if self.headline not in self.k:
            small = [k for k in self.k if k <= 20]
            if self.headline != 20 or not small:
                raise _wrong("headline", self.headline, "must be one of k = {k}", k=list(self.k))
            self.__dict__["headline"] = max(small)  # the model is frozen to everybody else
        return self


class Probe(_Evaluation):
    """Accuracy and cross-entropy of the online linear head."""

    kind: Literal["probe"]
    every_epochs: Count | None = 1


class Collapse(_Evaluation):
    """Effective rank, participation ratio, alignment and uniformity of the backbone's features.

    The projected features, which the loss sees, give `embedding_effective_rank`.
    """

    kind: Literal["collapse"]
    every_epochs: Count | None = 1


Evaluation = Annotated[KNN | Probe | Collapse, Field(discriminator="kind")]


class Resources(Strict):
    """What one run needs. Not part of its identity: W workers compute what one computes."""

    workers: Count = 1
    """Data-parallel workers (Ray Train)."""
    cpus_per_worker: Count = 1
    """CPUs per worker; also the number of torch threads."""
    gpus_per_worker: NonNegative = 0.0
    """GPUs per worker; a fraction shares one."""


class Experiment(Strict):
    """One run, fully specified."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the experiment, and of the MLflow experiment `simlap run` records into."""
    schema_version: Literal[1] = 1
    """Version of this format."""
    seed: int = 0
    """Seed of every random draw (initialisation, order, augmentation, pairs, noise)."""
    data: Data
    backbone: Backbone = Backbone()
    method: SimLAP = SimLAP(kind="simlap")
    optim: Optim = Optim()
    train: Train = Train()
    checkpoint: Checkpointing = Checkpointing()
    evaluate: tuple[Evaluation, ...] = (KNN(kind="knn"), Probe(kind="probe"), Collapse(kind="collapse"))
    """What is measured, on the validation split along the way and on the test split at the end."""
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _sections_agree(self) -> Experiment:
        if self.optim.warmup_epochs > self.train.epochs:
            raise _wrong(
                "optim.warmup_epochs",
                self.optim.warmup_epochs,
                "must not be more than train.epochs ({epochs})",
                epochs=self.train.epochs,
            )
        if self.data.repeated_augmentation >= self.train.batch_size:
            raise _wrong(
                "data.repeated_augmentation",
                self.data.repeated_augmentation,
                "must be less than train.batch_size ({batch_size}): a batch needs at least two different images",
                batch_size=self.train.batch_size,
            )
        kinds = [evaluation.kind for evaluation in self.evaluate]
        for i, kind in enumerate(kinds):
            if kind in kinds[:i]:
                raise _wrong(f"evaluate.{i}.kind", kind, "is given twice; the metrics' names would be the same")
        return self

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """`train.precision` with `auto` resolved from the file alone, so that the identity does not depend on the machine."""
        if self.train.precision == "auto":
            return "bf16" if self.resources.gpus_per_worker > 0 else "fp32"
        return self.train.precision
