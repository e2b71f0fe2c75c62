"""Fine-tuning as a measurement: the whole backbone, trained on with a new classifier; the model itself stays as it is."""

from __future__ import annotations

import torch

from simlap.config.schema import Experiment, FineTune, Optim, Supervised, Train, UniformSampling
from simlap.data.splits import Splits
from simlap.methods.base import Method
from simlap.train.features import DivergedError
from simlap.train.world import World

_MIN_LR, _WARMUP_LR = 1e-5, 1e-6


def finetune_experiment(experiment: Experiment, protocol: FineTune, num_train: int) -> Experiment:
    """The supervised experiment that a protocol stands for.

    Backbone, data and precision are the experiment's. Of its augmentation one view is used and nothing is mixed; images
    are drawn uniformly, each once an epoch. Norms learn again.

    Args:
        experiment: of the model under evaluation, its `data` section being that of the fine-tuning.
        num_train: images in the training part. A batch is never larger.
    """
    augment = experiment.data.augment.model_copy(update={"views": 1, "mixup": 0.0, "cutmix": 0.0})
    data = experiment.data.model_copy(
        update={"augment": augment, "repeated_augmentation": 1, "sampling": UniformSampling(kind="uniform")}
    )
    return Experiment(
        name=f"{experiment.name}-finetune",
        seed=protocol.seed,
        data=data,
        backbone=experiment.backbone.model_copy(update={"weights": None, "key_prefix": "", "frozen_norm": False}),
        method=Supervised(kind="supervised", label_smoothing=protocol.label_smoothing),
        optim=Optim(
            name="sgd",
            lr=protocol.lr,
            weight_decay=protocol.weight_decay,
            layer_decay=protocol.layer_decay,
            warmup_epochs=min(1.0, protocol.epochs / 2),
            warmup_lr=min(_WARMUP_LR, protocol.lr),
            min_lr=min(_MIN_LR, protocol.lr / 100),
        ),
        train=Train(
            epochs=protocol.epochs,
            batch_size=min(protocol.batch_size, num_train),
            precision=experiment.precision,
            channels_last=experiment.train.channels_last,
            compile=experiment.train.compile,
            max_skipped_steps=1,  # a measurement is taken as it is meant, or not at all
        ),
        evaluate=(),
        resources=experiment.resources,
    )


def finetune(model: Method, splits: Splits, world: World, experiment: Experiment, protocol: FineTune) -> Method:
    """The fine-tuned model. All workers must call it together; the global random state is left as it was.

    Args:
        model: whose backbone is the start.
        experiment: of the model, its `data` section that of `splits`.

    Raises:
        DivergedError: a loss or a gradient became NaN or infinite.
    """
    # the loop evaluates and so imports this module
    from simlap.train.step import build, train_epoch

    start = {name: value.detach().clone() for name, value in model.backbone.state_dict().items()}
    devices = [world.device] if world.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        state = build(finetune_experiment(experiment, protocol, len(splits.train)), splits, world, start)
        for _ in range(protocol.epochs):
            try:
                train_epoch(state)
            except DivergedError as error:
                raise DivergedError("the loss of the fine-tuning is not finite: lower its lr") from error
            state.next_epoch()
    return state.evaluated
