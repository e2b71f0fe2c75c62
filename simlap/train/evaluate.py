"""Evaluation protocols of an experiment, run on the model as it stands."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from simlap.config.schema import KNN, Collapse, Evaluation, Probe
from simlap.data.loader import eval_batches
from simlap.data.splits import ImageSet, Splits
from simlap.evaluate.collapse import collapse_metrics
from simlap.evaluate.knn import knn_top1
from simlap.methods import SimLAP
from simlap.train.distributed import all_gather_with_gradient
from simlap.train.world import World


class DivergedError(RuntimeError):
    """A loss, a feature or a metric is not finite."""


class Evaluator:
    """Runs protocols, extracting the features of each split at most once per model state.

    All workers must call it together: each extracts rows rank::size, and every worker gets all rows, in order.
    """

    def __init__(self, model: SimLAP, splits: Splits, world: World) -> None:
        self.model, self.splits, self.world = model, splits, world
        self._features: dict[str, Tensor] = {}

    def __call__(self, evaluation: Evaluation, split: str) -> dict[str, float]:
        """Metrics of one protocol on the split `val` or `test`. Features and heads are evaluated in fp32."""
        images = self._set(split)
        labels = images.labels.to(self.world.device)
        features = self.features(split)
        match evaluation:
            case Probe():
                with torch.no_grad():
                    logits = self.model.probe(features)  # [n, C]
                    loss = F.cross_entropy(logits, labels).item()
                top1 = (logits.argmax(1) == labels).double().mean().item()
                return {f"{split}/probe_top1": top1, f"{split}/probe_loss": loss}
            case KNN():
                accuracy = knn_top1(
                    self.features("train"),
                    self.splits.train.labels.to(self.world.device),
                    features,
                    labels,
                    num_classes=self.splits.num_classes,
                    k=evaluation.k,
                    temperature=evaluation.temperature,
                )
                metrics = {f"{split}/knn_top1_k{k}": value for k, value in accuracy.items()}
                return {f"{split}/knn_top1": accuracy[evaluation.headline], **metrics}
            case Collapse():
                with torch.no_grad():
                    z = self._projected(features)
                metrics = {f"collapse/{name}": value for name, value in collapse_metrics(features, labels).items()}
                embedding = collapse_metrics(z, labels)
                return {**metrics, "collapse/embedding_effective_rank": embedding["effective_rank"]}

    def features(self, split: str) -> Tensor:
        """[n, d] float32 backbone features of a split, in its order."""
        if split not in self._features:
            self._features[split] = self._extract(self._set(split))
        return self._features[split]

    def _projected(self, features: Tensor) -> Tensor:
        was_training = self.model.training
        self.model.eval()
        z: Tensor = self.model.projector(features)
        self.model.train(was_training)
        return z

    def _set(self, split: str) -> ImageSet:
        images = {"train": self.splits.train, "val": self.splits.val, "test": self.splits.test}[split]
        if images is None:
            raise ValueError(f"there is no {split} split")
        return images

    def _extract(self, images: ImageSet) -> Tensor:
        world = self.world
        mine = ImageSet(images.images[world.rank :: world.size], images.labels[world.rank :: world.size])
        was_training = self.model.training
        self.model.eval()
        # a worker without rows still takes part in the gathering
        parts = [torch.empty(0, int(self.model.backbone.num_features), device=world.device)]  # type: ignore[arg-type]
        with torch.no_grad():
            parts += [
                self.model.backbone(batch).float()
                for batch, _ in eval_batches(mine, self.splits.mean, self.splits.std, world.device)
            ]
        self.model.train(was_training)
        local = torch.cat(parts)
        if not world.sum(torch.isfinite(local).all().float()) == world.size:
            raise DivergedError("the backbone's features are not finite: lower optim.lr or raise the temperature")
        if world.size == 1:
            return local
        gathered = all_gather_with_gradient(local)  # ranks one after another
        total = len(images.labels)
        ordered = torch.empty_like(gathered)
        start = 0
        for rank in range(world.size):
            count = world.rows(total, rank)
            ordered[rank :: world.size] = gathered[start : start + count]
            start += count
        return ordered
