from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from simlap.config import validate
from simlap.config.schema import KNN, Collapse, Evaluation, Experiment, FineTune, Gates, Linear, Probe, Transfer
from simlap.data.hierarchy import Hierarchy
from simlap.data.splits import Splits, load_splits
from simlap.errors import DataError
from simlap.evaluate.cache import FeatureCache
from simlap.evaluate.collapse import SPECTRUM, collapse_metrics
from simlap.evaluate.knn import knn_top1
from simlap.evaluate.linear import fit_lbfgs, fit_sgd
from simlap.evaluate.names import COLLAPSE, GATES, metric_names
from simlap.methods import build_method
from simlap.methods.base import Method
from simlap.storage import Storage
from simlap.train import evaluate as module
from simlap.train.evaluate import DivergedError, Evaluator
from simlap.train.features import extract_features
from simlap.train.transfer import transfer_experiment, transfer_splits
from simlap.train.world import World
from tests.tiny import TREE, tiny

GROUPS: dict[str, Any] = {"round": ["0", "6", "8", "9"], "straight": ["1", "4", "7"], "other": ["2", "3", "5"]}
FINETUNE = FineTune(kind="finetune", epochs=1, batch_size=512)
TRANSFER = Transfer(
    kind="transfer",
    data={
        "halves": validate(Experiment, {**TREE, "data": {"source": "digits", "fraction": 0.3}}).data,
        "few-open": validate(
            Experiment,
            {**TREE, "data": {"source": "digits", "classes": ["3", "8"], "validation": "none", "image_size": 10}},
        ).data,
    },
    protocols=(KNN(kind="knn", k=(1, 5)), Linear(kind="linear", l2=1e-2), FINETUNE),
)
EVERY: list[Evaluation] = [
    Probe(kind="probe"),
    KNN(kind="knn", k=(1, 3), headline=3),
    Collapse(kind="collapse"),
    Linear(kind="linear", l2=1e-2),
    Linear(kind="linear", solver="sgd", epochs=2),
    FINETUNE,
    Gates(kind="gates", permutations=19, hierarchy=GROUPS),
    TRANSFER,
]


def _made(**changes: Any) -> tuple[Method, Splits, Experiment]:
    experiment = tiny(**changes)
    splits = load_splits(experiment.data)
    model = build_method(experiment, num_classes=splits.num_classes, channels=splits.channels, world=World())
    return model, splits, experiment


def _evaluator(**changes: Any) -> Evaluator:
    model, splits, experiment = _made(**changes)
    return Evaluator(model, splits, World(), experiment)


def counted(monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[..., Any]) -> list[str]:
    """A list that grows by one with every call of a function of the module."""
    calls: list[str] = []

    def call(*args: Any, **named: Any) -> Any:
        calls.append(name)
        return function(*args, **named)

    monkeypatch.setattr(module, name, call)
    return calls


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return _evaluator()


@pytest.mark.parametrize("evaluation", EVERY, ids=lambda e: e.kind)
def test_names_are_those_of_the_metrics(evaluation: Evaluation, evaluator: Evaluator) -> None:
    assert evaluator.selection == "val"
    along, final = evaluator.along(evaluation), evaluator.final(evaluation)
    assert [name for name in along if SPECTRUM not in name] == metric_names(evaluation, "val")
    both = [*metric_names(evaluation, "val"), *metric_names(evaluation, "test")]
    assert set(final.metrics) == set(both) - {f"collapse/{name}" for name in COLLAPSE} | set(along)
    assert (final.artefact is not None) == isinstance(evaluation, Gates)
    json.dumps(final.artefact, allow_nan=False)


@pytest.mark.parametrize("evaluation", EVERY, ids=lambda e: e.kind)
def test_names_without_validation(evaluation: Evaluation) -> None:
    evaluator = _evaluator(data__validation="none")
    assert evaluator.selection == "test"
    along = evaluator.along(evaluation)
    assert sorted(name for name in along if SPECTRUM not in name) == sorted(metric_names(evaluation, "test"))
    assert evaluator.final(evaluation).metrics == along


def test_what_is_not_defined_is_absent() -> None:
    evaluator = _evaluator(method={"kind": "supervised"}, data__fraction=0.3)
    names = evaluator.along(Collapse(kind="collapse"))
    assert set(metric_names(Collapse(kind="collapse"), "val")) - set(names) == {"collapse/embedding_effective_rank"}
    with pytest.raises(ValueError, match="supervised has no gates"):
        evaluator.along(Gates(kind="gates"))
    gates = _evaluator().along(Gates(kind="gates", permutations=9))
    absent = {name.removeprefix("gates/") for name in metric_names(Gates(kind="gates"), "val")} - {
        name.removeprefix("gates/") for name in gates
    }
    assert absent == {name for name in GATES if "hierarchy" in name or "purity" in name}
    still = _evaluator(method__gate={"kind": "open"}).along(Gates(kind="gates", permutations=9))
    lost = {"directions", "cophenetic", *(name for name in GATES if "_features" in name), *absent}
    assert set(still) == {f"gates/{name}" for name in GATES if name not in lost}
    assert still["gates/activation"] == 1


def test_the_hierarchy_of_a_protocol_goes_before_the_datasets_own(evaluator: Evaluator) -> None:
    theirs: Hierarchy = {"small": ["0", "1", "2", "3"], "large": ["4", "5", "6", "7", "8", "9"]}
    splits = dataclasses.replace(evaluator.splits, hierarchy=theirs)
    both = Evaluator(evaluator.model, splits, World(), evaluator.experiment)
    artefacts = []
    for hierarchy in (None, GROUPS):
        artefact = both.final(Gates(kind="gates", permutations=9, hierarchy=hierarchy)).artefact
        assert artefact is not None
        artefacts.append(artefact)
    assert artefacts[0]["groups"] == ["small"] * 4 + ["large"] * 6
    assert artefacts[1]["groups"] == [next(g for g, m in GROUPS.items() if str(i) in m) for i in range(10)]
    assert artefacts[0]["semantic_distance"] != artefacts[1]["semantic_distance"]
    with pytest.raises(DataError) as raised:
        both.along(Gates(kind="gates", hierarchy={"a": ["0", "x"]}))
    assert (raised.value.key, raised.value.value) == ("gates.hierarchy.a", "x")


def test_values_are_those_of_the_functions(evaluator: Evaluator) -> None:
    model, splits = evaluator.model, evaluator.splits
    h, labels = evaluator.features("test"), splits.test.labels
    bank, bank_labels = evaluator.features("train"), splits.train.labels
    final = {
        **evaluator.final(EVERY[0]).metrics,
        **evaluator.final(EVERY[1]).metrics,
        **evaluator.final(EVERY[2]).metrics,
    }
    model.eval()
    with torch.no_grad():
        logits, z = model.logits(h), model.embed(h)
    model.train()
    assert z is not None
    assert final["test/probe_top1"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    knn = knn_top1(bank, bank_labels, h, labels, num_classes=10, k=(3,))
    assert final["test/knn_top1"] == final["test/knn_top1_k3"] == knn[3]
    for name, value in collapse_metrics(h, labels).items():
        assert name.startswith(SPECTRUM) or final[f"test/collapse_{name}"] == pytest.approx(value)
    assert final["test/collapse_embedding_effective_rank"] == pytest.approx(
        collapse_metrics(z, labels)["effective_rank"]
    )


def test_options_reach_the_functions(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"epochs": 2, "lr": 0.3, "batch_size": 300, "optimizer": "lars", "seed": 3}
    features, labels = evaluator.features("train"), evaluator.labels("train")
    expected = fit_sgd(features, labels, num_classes=10, weight_decay=0.3, **options)
    found = evaluator._linear(Linear(kind="linear", solver="sgd", l2=0.3, **options))
    assert torch.equal(found.weight, expected.weight)
    plain: dict[str, Any] = {
        "epochs": 90,
        "lr": 0.1,
        "batch_size": 1024,
        "weight_decay": 0.0,
        "optimizer": "sgd",
        "seed": 0,
    }
    given: dict[str, dict[str, Any]] = {}

    def kept(name: str, function: Callable[..., Any]) -> None:
        def call(*args: Any, **named: Any) -> Any:
            given[name] = named
            return function(*args, **named)

        monkeypatch.setattr(module, name, call)

    kept("fit_sgd", lambda *_, **__: found)
    kept("fit_lbfgs", lambda *_, **__: found)
    kept("knn_top1", knn_top1)
    evaluator._linear(Linear(kind="linear", solver="sgd"))
    assert given["fit_sgd"] == {"num_classes": 10, **plain}
    evaluator._linear(Linear(kind="linear", l2=0.5, seed=4))
    assert given["fit_lbfgs"] == {"num_classes": 10, "l2": 0.5, "seed": 4}
    evaluator._knn(KNN(kind="knn", k=(2, 3), headline=3, temperature=0.31), "val")
    assert given["knn_top1"] == {"num_classes": 10, "k": (2, 3), "temperature": 0.31}


def test_evaluation_disturbs_neither_model_nor_random_state() -> None:
    evaluator = _evaluator(data__fraction=0.3)
    model = evaluator.model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.random.get_rng_state()
    for evaluation in EVERY:
        evaluator.final(evaluation)
    assert torch.equal(random, torch.random.get_rng_state())
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_split_is_extracted_once_and_classifiers_are_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    extracted = counted(monkeypatch, "extract_features", extract_features)
    fitted = counted(monkeypatch, "fit_lbfgs", fit_lbfgs)
    evaluator = _evaluator()
    for evaluation in (*EVERY[:4], EVERY[6]):
        evaluator.along(evaluation)
        evaluator.final(evaluation)
    assert len(extracted) == 3
    assert len(fitted) == 1


def test_transfer_uses_the_pretrainings_size_channels_and_statistics(evaluator: Evaluator) -> None:
    experiment = transfer_experiment(evaluator.experiment, TRANSFER.data["few-open"])
    splits = transfer_splits(experiment, evaluator.splits)
    assert splits.test.images.shape[2:] == (8, 8)
    assert (splits.mean, splits.std) == (evaluator.splits.mean, evaluator.splits.std)
    assert splits.class_names == ("3", "8")
    assert transfer_splits(experiment, evaluator.splits) is splits  # kept
    transfer_splits(transfer_experiment(evaluator.experiment, TRANSFER.data["halves"]), evaluator.splits)
    assert transfer_splits(experiment, evaluator.splits) is not splits, "one at a time"


def test_transfer_uses_the_pretrainings_transform_and_the_datasets_own_augmentation() -> None:
    own = tiny(data__augment__interpolation="bicubic", data__image_size=12, data__eval_size=13, data__stored_size=16)
    other = tiny(data__stored_size=9, data__augment__erase=0.7).data
    made = transfer_experiment(own, other).data
    assert own.data.augment.interpolation != other.augment.interpolation
    assert made.augment == other.augment.model_copy(update={"interpolation": "bicubic"})
    assert (made.image_size, made.eval_size, made.stored_size) == (12, 13, 12)
    assert made.validation == other.validation


def test_features_come_from_the_cache_and_damage_is_mended_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, splits, experiment = _made()
    storage = Storage(tmp_path)
    cache = FeatureCache(storage, "ab" * 32)
    plain = Evaluator(model, splits, World(), experiment).features("val")
    first = Evaluator(model, splits, World(), experiment, cache)
    assert torch.equal(first.features("val"), plain)
    first.features("test")
    files = sorted(path for path in tmp_path.rglob("*.safetensors"))
    assert len(files) == 2

    extracted = counted(monkeypatch, "extract_features", extract_features)
    assert torch.equal(Evaluator(model, splits, World(), experiment, cache).features("val"), plain)
    assert not extracted

    for file in files:
        data = bytearray(file.read_bytes())
        data[-9] ^= 1
        file.write_bytes(data)
    with caplog.at_level(logging.WARNING, "simlap.evaluate"):
        assert torch.equal(Evaluator(model, splits, World(), experiment, cache).features("val"), plain)
    assert len(extracted) == 1
    assert "extracting them again" in caplog.text
    assert torch.equal(Evaluator(model, splits, World(), experiment, cache).features("val"), plain)
    assert len(extracted) == 1  # mended


def test_features_that_are_not_finite_stop_the_run() -> None:
    model, splits, experiment = _made(data__fraction=0.3)
    with torch.no_grad():
        next(model.backbone.parameters()).fill_(float("nan"))
    with pytest.raises(DivergedError, match="features are not finite"):
        Evaluator(model, splits, World(), experiment).along(KNN(kind="knn"))
