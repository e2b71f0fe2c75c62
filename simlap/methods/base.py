"""What every method is: a backbone, and a criterion on its features that is part of `forward`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from simlap import rng
from simlap.config.schema import Experiment
from simlap.data.batch import Batch
from simlap.nn.backbone import build_backbone
from simlap.nn.filter import FeatureFilter
from simlap.train.distributed import all_gather_with_gradient
from simlap.train.world import World


class StepOutput(NamedTuple):
    """What one step gives."""

    loss: Tensor
    """Scalar to call backward on. Its gradients, averaged over workers, are those of the global batch."""
    metrics: dict[str, Tensor]
    """Scalars without gradient; summed over workers they are the global batch's."""


class Method(nn.Module, ABC):
    """From a batch to a loss. A data-parallel wrapper around the module sees every use of a parameter.

    Subclasses build their parts in `seeded(...)` blocks, so that experiments with one seed share what they have in common.

    Args:
        experiment: its `backbone`, `data` and `method` sections say what to build.
        num_classes: C.
        channels: of the images.
        world: the data-parallel world.
    """

    def __init__(self, experiment: Experiment, *, num_classes: int, channels: int, world: World) -> None:
        super().__init__()
        self.seed, self.num_classes, self.world = experiment.seed, num_classes, world
        self.frozen_norm = experiment.backbone.frozen_norm
        self.loss_form, self.ring = experiment.train.loss, experiment.train.keys == "ring"
        with self.seeded("backbone"):
            self.backbone = build_backbone(experiment.backbone, channels, experiment.data.image_size)
        self.num_features = int(self.backbone.num_features)  # type: ignore[arg-type]
        """d, the backbone's width."""

    def seeded(self, part: str) -> _Seeded:
        """A block in which torch's generator is seeded by the experiment's seed and the part's name."""
        return _Seeded(rng.key(self.seed, "init", part))

    def forward(self, batch: Batch, noise: Tensor | None = None) -> StepOutput:
        """Loss and metrics of this worker's rows. `noise`: its rows of `draw_noise`."""
        return self.criterion(self.backbone(batch.images), batch, noise)

    @abstractmethod
    def criterion(self, h: Tensor, batch: Batch, noise: Tensor | None = None) -> StepOutput:
        """Loss and metrics from the features. h: [b, d]. `batch.images` is not looked at."""

    @abstractmethod
    def logits(self, h: Tensor) -> Tensor:
        """Class scores of the online head at evaluation, [n, d] -> [n, C]."""

    def embed(self, h: Tensor) -> Tensor | None:
        """The space that the loss looks at, [n, d] -> [n, D]; None where there is none but the features themselves."""
        return None

    @property
    def gates(self) -> FeatureFilter | None:
        """The filter whose gates can be analysed, None where there is none."""
        return None

    def draw_noise(self, num_rows: int, generator: torch.Generator) -> Tensor | None:
        """Noise of the *global* batch, [B, D] on the CPU (for the gates, unless a method says otherwise), or None without."""
        return self.gates.draw_noise(num_rows, generator) if self.gates is not None else None

    def gather(self, x: Tensor, batch: Batch) -> Tensor:
        """The rows of all workers in rank order, with gradient: [b, ...] -> [B, ...]. All workers must ask."""
        if self.world.size == 1:
            return x
        return all_gather_with_gradient(x, sizes=self.row_counts(batch))

    def row_counts(self, batch: Batch) -> list[int]:
        """How many rows each worker has. They follow from the batch: nobody asks for them, and no device is waited for."""
        images = batch.global_size // batch.views
        return [self.world.rows(images, rank) * batch.views for rank in range(self.world.size)]

    def own_columns(self, batch: Batch) -> Tensor:
        """int64 [b], where each of this worker's rows is among the gathered ones."""
        return batch.offset + torch.arange(len(batch.labels), device=batch.labels.device)

    def step_output(self, loss: Tensor, metrics: dict[str, Tensor]) -> StepOutput:
        """Of this worker's shares: summed over workers, `loss` and each of `metrics` are the global batch's."""
        metrics = {"train/loss": loss, **metrics}
        # a data-parallel wrapper averages gradients over workers, and they are to be summed
        return StepOutput(self.world.size * loss, {name: value.detach() for name, value in metrics.items()})

    def train(self, mode: bool = True) -> Method:
        """As in torch; a frozen batch norm of the backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


class _Seeded:
    def __init__(self, seed: int) -> None:
        self._seed, self._fork = seed, torch.random.fork_rng(devices=[])

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *error: object) -> None:
        self._fork.__exit__(*error)  # type: ignore[arg-type]
