"""The `optim`, `train`, `checkpoint` and `resources` sections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from simlap.config.schema.base import Count, Fraction, NonNegative, Positive, Strict, wrong


class Optim(Strict):
    """Optimiser and learning-rate schedule (per iteration)."""

    name: str = "adam"
    """An optimiser of timm's factory. `adam` has coupled L2 decay, `adamw` decoupled decay, `sgd` Nesterov momentum; `lamb`,
    `lars`, `muon` and many more. No decay on biases and 1-d parameters."""
    kwargs: dict[str, JsonValue] = {}
    """More arguments of the optimiser, such as `betas`."""
    lr: Positive = 1e-3
    """Peak learning rate, for the global batch."""
    weight_decay: NonNegative = 5e-4
    """Weight decay of matrices and label embeddings."""
    momentum: Fraction = 0.9
    """Momentum of the optimisers that have one."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Each of the backbone's layers learns so many times slower than the one above it; heads at full rate."""
    clip_grad: Positive | None = None
    """Largest norm of the gradient of all parameters together (default: none)."""
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
            raise wrong(
                "min_lr", self.min_lr, "must be less than lr ({lr}), from which the cosine falls", lr=f"{self.lr:g}"
            )
        if self.warmup_epochs > 0 and self.warmup_lr > self.lr:
            raise wrong(
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
    """Rows of the *global* batch, before views. Worker r of W takes rows r::W."""
    micro_batch_size: Count | None = None
    """Gradient accumulation: each worker sends so many rows at a time through the backbone; projector, filter and loss see the
    whole batch (default: all rows at once). The backbone's batch norm sees the parts."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 autocast where the file asks for GPUs, fp32 otherwise. The loss is always at least fp32."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay per step of an exponential moving average of the weights, which is then what is evaluated and exported."""
    compile: bool = False
    """Let torch.compile compile the backbone. Not part of a run's identity."""
    channels_last: bool = False
    """Memory order of images and convolutions. Not part of a run's identity."""
    loss: Literal["auto", "plain", "compiled", "chunked", "fused"] = "auto"
    """How the subspace InfoNCE is computed. `auto`: `chunked`, the fastest that has been measured. `plain`: two matrix products
    and autograd; `compiled`: the same through torch.compile; `chunked`: by blocks, in memory that grows with the number of keys;
    `fused`: Triton kernels on CUDA, not yet tried on a GPU. Not part of a run's identity."""
    keys: Literal["gather", "ring"] = "gather"
    """How workers share keys: all hold all of them, or they go round in a ring and no worker ever does (method.kind: simlap and
    fuse). Not part of a run's identity."""
    max_skipped_steps: Count = 10
    """A step whose loss or gradient is NaN or infinite on any worker is left out by all, and counted. After so many in a row
    training stops with an error; 1 for the first. Not part of a run's identity."""


class Checkpointing(Strict):
    """When the training state is saved. Not part of a run's identity."""

    every_epochs: Count = 1
    """Save after every so many epochs (and always after the last)."""
    keep: Annotated[int, Field(ge=2)] = 2
    """How many checkpoints are kept (at least 2: one may be damaged)."""
    on_stop: bool = True
    """Save when the run is asked to stop in mid-epoch."""


class Resources(Strict):
    """What one run needs. Not part of its identity: W workers compute what one computes."""

    workers: Count = 1
    """Data-parallel workers (Ray Train)."""
    min_workers: Count | None = None
    """So few workers do where the cluster has no room for all: a run that lost a node goes on with those that are left, and
    grows back to `workers` when there is room again. Default: all are needed, and a run waits for them. Any number of workers
    makes the same steps with the same images, but its sums round otherwise: a run that had fewer for a time is not bit-equal to
    one that had not."""
    cpus_per_worker: Count = 1
    """CPUs per worker; also the number of torch threads."""
    gpus_per_worker: NonNegative | Literal["auto"] = 0.0
    """GPUs per worker; a fraction shares one. `auto`: one, which a study's later cells of one worker share, as many as fit by the
    memory that earlier ones like them took."""

    @model_validator(mode="after")
    def _no_more_than_all(self) -> Resources:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise wrong(
                "min_workers", self.min_workers, "must not be more than workers ({workers})", workers=self.workers
            )
        return self

    @property
    def fewest(self) -> int:
        """Workers that a run must have."""
        return self.workers if self.min_workers is None else self.min_workers

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change while it runs."""
        return self.fewest < self.workers

    @property
    def gpus(self) -> float:
        """GPUs per worker before anything is known of the memory that is needed."""
        return 1.0 if self.gpus_per_worker == "auto" else self.gpus_per_worker
