"""Whether how a loss is to be computed fits the method and the device."""

from __future__ import annotations

from simlap.config import schema
from simlap.errors import ConfigError


def check_loss(experiment: schema.Experiment) -> None:
    """`train.loss` and `train.keys` against the method and the resources; meant to be asked before anything starts.

    Raises:
        ConfigError: `fused` without a GPU, or `ring` for a loss that cannot do without all keys, or with a form that
            is not the ring's.
    """
    train, method = experiment.train, experiment.method
    if train.loss == "fused" and experiment.resources.gpus == 0:
        raise ConfigError(
            "is for CUDA, and resources.gpus_per_worker is 0",
            key="train.loss",
            value=train.loss,
            choices=["auto", "plain", "compiled", "chunked"],
        )
    if train.keys == "gather":
        return
    if not has_subspace_nce(experiment):
        variant = f", method.variant: {method.variant}" if isinstance(method, schema.SupCon) else ""
        raise ConfigError(
            "is for the subspace InfoNCE (method.kind: simlap, fuse, or supcon with variant: multi_positive), "
            f"not for method.kind: {method.kind}{variant}",
            key="train.keys",
            value=train.keys,
            choices=["gather"],
        )
    if train.loss != "auto":
        raise ConfigError(
            "with train.keys: ring the workers compute the loss together, in a form of its own: remove it, or set "
            "train.keys: gather",
            key="train.loss",
            value=train.loss,
            choices=["auto"],
        )


def has_subspace_nce(experiment: schema.Experiment) -> bool:
    """Whether the experiment's loss is the subspace InfoNCE."""
    method = experiment.method
    if isinstance(method, schema.SupCon):
        return method.variant == "multi_positive"
    return isinstance(method, schema.SimLAP | schema.Fuse)
