"""Evaluation protocols of an experiment, run on the model as it stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, assert_never

from torch import Tensor
from torch.nn import functional as F

from simlap.config.schema import KNN, Collapse, Evaluation, Experiment, FineTune, Gates, Linear, Probe, Transfer
from simlap.data.hierarchy import check_hierarchy, semantic_distances, top_groups
from simlap.data.splits import ImageSet, Splits, inspect_data
from simlap.evaluate.cache import FeatureCache, features_id
from simlap.evaluate.collapse import SPECTRUM, collapse_metrics, effective_rank, spectrum
from simlap.evaluate.gate_analysis import GateAnalysis, analyse_gates
from simlap.evaluate.knn import knn_top1
from simlap.evaluate.linear import LinearClassifier, fit_lbfgs, fit_sgd
from simlap.evaluate.names import transferred
from simlap.methods.base import Method
from simlap.train.features import DivergedError, evaluating, extract_features
from simlap.train.finetune import finetune
from simlap.train.transfer import transfer_experiment, transfer_splits
from simlap.train.world import World

__all__ = ["DivergedError", "Evaluator", "Measured"]

T = TypeVar("T")


class Measured(NamedTuple):
    """What a protocol gives at the end of a run."""

    metrics: dict[str, float]
    """On the selection split and on the test split, as `simlap.evaluate.names` lists them."""
    artefact: dict[str, Any] | None
    """JSON-able data for figures, where the protocol has any."""


class Evaluator:
    """Runs protocols, extracting features, fitting classifiers and fine-tuning at most once per model state.

    All workers must call it together; every worker gets all features, in order. Decisions are made on the selection split:
    `val`, or `test` where the file declares no validation. Features and heads are evaluated in fp32.

    Args:
        model: as it stands; it is not changed.
        splits: the data it is evaluated on.
        world: the data-parallel world.
        experiment: of the model, its `data` section that of `splits`.
        cache: where features are kept and looked for, None for nowhere.
    """

    def __init__(
        self, model: Method, splits: Splits, world: World, experiment: Experiment, cache: FeatureCache | None = None
    ) -> None:
        self.model, self.splits, self.world, self.experiment, self.cache = model, splits, world, experiment, cache
        self.selection = "val" if splits.val is not None else "test"
        self._splits = tuple(dict.fromkeys((self.selection, "test")))  # in one order: all workers extract together
        self._features: dict[str, Tensor] = {}
        self._results: dict[tuple[str, str], Any] = {}

    def along(self, evaluation: Evaluation) -> dict[str, float]:
        """Metrics on the selection split."""
        return self._measure(evaluation, self.selection)

    def final(self, evaluation: Evaluation) -> Measured:
        """Metrics on the selection split and on the test split, with the artefact."""
        metrics = self._measure(evaluation, self.selection)
        if self.selection != "test":
            metrics = {**metrics, **self._measure(evaluation, "test")}
        artefact = self._gates(evaluation).artefact if isinstance(evaluation, Gates) else None
        return Measured(metrics, artefact)

    def features(self, split: str) -> Tensor:
        """[n, d] float32 backbone features of `train`, `val` or `test`, in its order."""
        if split not in self._features:
            self._features[split] = self._cached(split)
        return self._features[split]

    def labels(self, split: str) -> Tensor:
        """int64 [n], on the device."""
        return self._set(split).labels.to(self.world.device)

    def _measure(self, evaluation: Evaluation, split: str) -> dict[str, float]:
        match evaluation:
            case Probe():
                return self._probe(split)
            case KNN():
                return self._knn(evaluation, split)
            case Collapse():
                return self._collapse(split)
            case Linear():
                fitted = self._once(evaluation, lambda: self._linear(evaluation))
                top1 = fitted.top1(self.features(split), self.labels(split))
                return {f"{split}/linear_top1": top1, "linear_l2": fitted.l2}
            case FineTune():
                return {f"{split}/finetune_top1": self._once(evaluation, lambda: self._finetune(evaluation))[split]}
            case Gates():
                return {f"gates/{name}": value for name, value in self._gates(evaluation).metrics.items()}
            case Transfer():
                return self._once(evaluation, lambda: self._transfer(evaluation))[split]
            case _:
                assert_never(evaluation)

    def _probe(self, split: str) -> dict[str, float]:
        features, labels = self.features(split), self.labels(split)
        with evaluating(self.model):
            logits = self.model.logits(features)  # [n, C]
            loss = F.cross_entropy(logits, labels).item()
        top1 = (logits.argmax(1) == labels).double().mean().item()
        return {f"{split}/probe_top1": top1, f"{split}/probe_loss": loss}

    def _knn(self, evaluation: KNN, split: str) -> dict[str, float]:
        accuracy = knn_top1(
            self.features("train"),
            self.labels("train"),
            self.features(split),
            self.labels(split),
            num_classes=self.splits.num_classes,
            k=evaluation.k,
            temperature=evaluation.temperature,
        )
        metrics = {f"{split}/knn_top1_k{k}": value for k, value in accuracy.items()}
        return {f"{split}/knn_top1": accuracy[evaluation.headline_k], **metrics}

    def _collapse(self, split: str) -> dict[str, float]:
        """The curve on the selection split has no split in its names; the test set's values have names of their own."""
        features, labels = self.features(split), self.labels(split)
        values = collapse_metrics(features, labels)
        with evaluating(self.model):
            z = self.model.embed(features)  # [n, D]
        if z is not None:
            values["embedding_effective_rank"] = effective_rank(spectrum(z.double()))
        metrics = {f"collapse/{name}": value for name, value in values.items()} if split == self.selection else {}
        if split == "test":
            # the spectrum is a curve, and no result
            metrics |= {f"test/collapse_{n}": value for n, value in values.items() if not n.startswith(SPECTRUM)}
        return metrics

    def _linear(self, evaluation: Linear) -> LinearClassifier:
        features, labels = self.features("train"), self.labels("train")
        classes = self.splits.num_classes
        if evaluation.solver == "lbfgs":
            return fit_lbfgs(features, labels, num_classes=classes, l2=evaluation.l2, seed=evaluation.seed)
        return fit_sgd(
            features,
            labels,
            num_classes=classes,
            epochs=evaluation.epochs,
            lr=evaluation.lr,
            batch_size=evaluation.batch_size,
            weight_decay=evaluation.l2 or 0.0,
            optimizer=evaluation.optimizer,
            seed=evaluation.seed,
        )

    def _finetune(self, evaluation: FineTune) -> dict[str, float]:
        """Accuracy by split."""
        tuned = finetune(self.model, self.splits, self.world, self.experiment, evaluation)
        evaluator = Evaluator(tuned, self.splits, self.world, self.experiment)
        return {split: evaluator._probe(split)[f"{split}/probe_top1"] for split in self._splits}

    def _gates(self, evaluation: Gates) -> GateAnalysis:
        return self._once(evaluation, lambda: self._analyse(evaluation))

    def _analyse(self, evaluation: Gates) -> GateAnalysis:
        gates, names, hierarchy = self.model.gates, self.splits.class_names, self.splits.hierarchy
        if gates is None:
            raise ValueError(f"method.kind: {self.experiment.method.kind} has no gates")
        if evaluation.hierarchy is not None:
            hierarchy = check_hierarchy(evaluation.hierarchy, names, key="gates.hierarchy")
        semantic = groups = None
        if hierarchy is not None:
            semantic = semantic_distances(hierarchy, names)
            numbers, group_names = top_groups(hierarchy, names)
            groups = [group_names[number] for number in numbers.tolist()]
        pairs = getattr(self.experiment.method, "pairs", None)
        notes = []
        if pairs == "distinct":
            notes.append("With method.pairs: distinct, the gates of a class with itself are never trained.")
        if pairs == "identical":
            notes.append("With method.pairs: identical, the gates of two different classes are never trained.")
        return analyse_gates(
            gates,
            class_names=names,
            features=self.features(self.selection),
            labels=self.labels(self.selection),
            semantic=semantic,
            groups=groups,
            permutations=evaluation.permutations,
            linkage=evaluation.linkage,
            notes=notes,
        )

    def _transfer(self, evaluation: Transfer) -> dict[str, dict[str, float]]:
        """Metrics by split. Both at once: a dataset is decoded for all that is measured on it, then let go."""
        metrics: dict[str, dict[str, float]] = {split: {} for split in self._splits}
        for name, data in evaluation.data.items():
            experiment = transfer_experiment(self.experiment, data)
            splits = transfer_splits(experiment, self.splits)
            evaluator = Evaluator(self.model, splits, self.world, experiment, self.cache)
            for split, found in metrics.items():
                if split == "val" and splits.val is None:
                    continue
                for protocol in evaluation.protocols:
                    values = evaluator._measure(protocol, split)
                    found |= {transferred(name, metric): value for metric, value in values.items()}
        return metrics

    def _once(self, evaluation: Evaluation, compute: Callable[[], T]) -> T:
        key = (evaluation.kind, evaluation.model_dump_json())
        if key not in self._results:
            self._results[key] = compute()
        found: T = self._results[key]
        return found

    def _set(self, split: str) -> ImageSet:
        images = {"train": self.splits.train, "val": self.splits.val, "test": self.splits.test}[split]
        if images is None:
            raise ValueError(f"there is no {split} split")
        return images

    def _cached(self, split: str) -> Tensor:
        images = self._set(split)
        if self.cache is None:
            return extract_features(self.model, images, self.splits, self.world)
        data = self.experiment.data
        name = features_id(data, inspect_data(data).fingerprint, self.splits, split)
        found = self.cache.get(name, images.labels)
        if not self.world.any(found is None):
            assert found is not None
            return found.to(self.world.device)
        features = extract_features(self.model, images, self.splits, self.world)
        if self.world.rank == 0:
            self.cache.put(name, features, images.labels)
        return features
