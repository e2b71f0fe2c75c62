"""`simlap eval`: protocols on a checkpoint, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from simlap.config import Experiment, canonical_hash, cell_id, evaluation_id, validate
from simlap.config.schema import Data, Evaluation
from simlap.data.splits import Splits, inspect_data, load_splits
from simlap.errors import ConfigError, UserError
from simlap.evaluate.cache import FeatureCache
from simlap.evaluate.names import transferred
from simlap.methods import build_method
from simlap.methods.base import Method
from simlap.storage import Storage
from simlap.train.checkpoint import Checkpoint, children, find_checkpoint, split_path
from simlap.train.evaluate import Evaluator
from simlap.train.transfer import transfer_experiment
from simlap.train.weights import EMA_PREFIX
from simlap.train.world import World

SCHEMA_VERSION = 1
ELSEWHERE = ("knn", "linear", "finetune", "collapse")
"""Protocols that make sense on other data than the run's own: the others look at its head or at the gates of its classes."""
_TRIAL = ".writable"
"""An object that is written and deleted again."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint and the experiment it belongs to."""

    checkpoint: Checkpoint
    experiment: Experiment
    run: Storage | None
    """The run directory it lies in, None where it lies by itself."""


@dataclass(frozen=True)
class Result:
    """What one protocol gave on one dataset."""

    identity: str
    data: str | None
    """Name of the dataset; None for the run's own."""
    protocol: dict[str, Any]
    metrics: dict[str, float]
    artefact: dict[str, Any] | None
    """JSON-able data for figures, where the protocol has any."""


def locate(name: str, storage: Storage) -> str:
    """The path of a checkpoint or run: the path itself, or the run directory of a cell. Raises UserError."""
    if Storage(name).exists():
        return name
    if "/" not in name and storage.exists(f"cells/{name}"):
        return storage.child("cells", name).uri
    raise UserError(f"{name}: no such run directory or checkpoint, and no run of this id in {storage.describe()}")


def open_checkpoint(path: str) -> Subject:
    """Read and verify a run's final (or newest) checkpoint, or the one that lies at the path. Raises UserError."""
    checkpoint = find_checkpoint(path)
    if checkpoint is None:
        raise UserError(f"{path}: is no run directory and no checkpoint")
    if "input" not in checkpoint.state:
        raise UserError(
            f"{path}: the checkpoint does not say what images it is made for; train the run one epoch further"
        )
    experiment = validate(Experiment, checkpoint.state["experiment"], file=f"{path}, its checkpoint")
    if "manifest.json" not in children(path):
        return Subject(checkpoint, experiment, Storage(path))
    above, _ = split_path(Storage(path).uri)
    run, name = split_path(above)
    return Subject(checkpoint, experiment, Storage(run) if name == "checkpoints" else None)


def check_protocols(subject: Subject, protocols: Sequence[Evaluation], data: Mapping[str, Data]) -> None:
    """Raises ConfigError for a protocol that the checkpoint or the data cannot have."""
    for protocol in protocols:
        if data and protocol.kind not in ELSEWHERE:
            raise ConfigError(
                "is about the data that the run was trained on; leave --data out", key="--protocol", value=protocol.kind,
                choices=ELSEWHERE,
            )  # fmt: skip
        if protocol.kind == "gates" and not subject.experiment.has_gates:
            raise ConfigError(
                f"there are no gates with method.kind: {subject.experiment.method.kind}",
                key="--protocol",
                value="gates",
            )


def evaluate(
    subject: Subject, protocols: Sequence[Evaluation], data: Mapping[str, Data], features: Storage
) -> Iterator[Result]:
    """Run every protocol on every dataset, one result at a time. Numbers are those of the run's own final evaluation.

    Args:
        subject: what is evaluated.
        protocols: what is measured.
        data: datasets by name; none for the run's own.
        features: where extracted features are kept.

    Raises:
        ConfigError: the run's own data have changed.
    """
    if not data:
        _check_unchanged(subject)
    world = this_world()
    model = build_evaluated(subject, world)
    cache = FeatureCache(features, subject.checkpoint.sha256)
    own = subject.experiment
    for name, section in data.items() or [(None, own.data)]:
        experiment = own if name is None else transfer_experiment(own, section)
        splits = _splits(subject, experiment.data)
        if name is None and splits.num_classes != model.num_classes:
            raise _changed(own, f"{splits.num_classes} classes, not {model.num_classes}")
        evaluator = Evaluator(model, splits, world, experiment, cache)
        for protocol in protocols:
            measured = evaluator.final(protocol)
            metrics = measured.metrics
            if name is not None:
                metrics = {transferred(name, metric): value for metric, value in metrics.items()}
            yield Result(
                _identity(protocol, subject.checkpoint.sha256, name, experiment.data), name,
                protocol.model_dump(mode="json", exclude={"every_epochs"}), metrics, measured.artefact,
            )  # fmt: skip


def own_evaluator(subject: Subject, features: Storage) -> Evaluator:
    """What measures a checkpoint on its own data, in this process. Raises ConfigError where the data have changed.

    Args:
        subject: what is evaluated.
        features: where extracted features are kept.
    """
    _check_unchanged(subject)
    world, own = this_world(), subject.experiment
    model = build_evaluated(subject, world)
    splits = _splits(subject, own.data)
    if splits.num_classes != model.num_classes:
        raise _changed(own, f"{splits.num_classes} classes, not {model.num_classes}")
    return Evaluator(model, splits, world, own, FeatureCache(features, subject.checkpoint.sha256))


def this_world() -> World:
    """This process alone, with the GPU where there is one."""
    return World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _splits(subject: Subject, data: Data) -> Splits:
    """A dataset as the checkpoint's network takes it."""
    made_for = subject.checkpoint.state["input"]
    return load_splits(data, channels=made_for["channels"], mean=tuple(made_for["mean"]), std=tuple(made_for["std"]))


def build_evaluated(subject: Subject, world: World) -> Method:
    """The method with the checkpoint's weights: the moving average's, where there is one."""
    made_for = subject.checkpoint.state["input"]
    model = build_method(
        subject.experiment, num_classes=made_for["num_classes"], channels=made_for["channels"], world=world
    )
    tensors = subject.checkpoint.model
    averaged = {name.removeprefix(EMA_PREFIX): v for name, v in tensors.items() if name.startswith(EMA_PREFIX)}
    model.load_state_dict(averaged or tensors)
    return model.to(world.device).eval()


def _check_unchanged(subject: Subject) -> None:
    """Raises ConfigError where the data are not those that the run was trained on, as far as its directory says which."""
    run, own = subject.run, subject.experiment
    if run is None:
        return
    found = inspect_data(own.data).fingerprint
    if run.exists("provenance.json"):
        known = run.read_json("provenance.json").get("data_fingerprint", found)
        if known != found:
            raise _changed(own, f"fingerprint {found}, not {known}")
    elif run.exists("stage.json"):  # of `simlap.train`; the fingerprint is part of the id
        stage = run.read_json("stage.json")
        if cell_id(own, found, stage["start"]) != stage["cell_id"]:
            raise _changed(own, f"with the fingerprint {found} it would be another run")


def _changed(own: Experiment, how: str) -> ConfigError:
    return ConfigError(
        f"the data have changed since the run was trained ({how}); name them with --data to measure other data",
        key="data.source",
        value=own.data.source,
    )


def check_writable(folder: Storage) -> None:
    """Raises UserError where results could not be kept: known before hours of work."""
    try:
        folder.write(_TRIAL, b"")
        folder.delete(_TRIAL)
    except OSError as error:
        raise _unwritable(folder, error) from error


def save(results: Sequence[Result], subject: Subject, folder: Storage) -> None:
    """Add results to `results.json`, by their ids: what was measured before with other protocols or data stays.

    Raises UserError where they cannot be written.
    """
    try:
        saved = folder.read_json("results.json")
    except FileNotFoundError:
        saved = {"schema_version": SCHEMA_VERSION, "results": {}}
    except OSError as error:
        raise _unwritable(folder, error) from error
    for result in results:
        saved["results"][result.identity] = {
            "checkpoint": subject.checkpoint.sha256,
            "epoch": subject.checkpoint.epoch,
            "data": result.data,
            "protocol": result.protocol,
            "metrics": result.metrics,
        }
    try:
        folder.write_json("results.json", saved)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Storage, error: OSError) -> UserError:
    return UserError(f"results cannot be kept there: {error}", file=folder.describe(), key="--out")


def _identity(protocol: Evaluation, checkpoint_sha256: str, name: str | None, data: Data) -> str:
    """On the run's own data the id of the evaluation, as in `result.json`."""
    own = evaluation_id(protocol, checkpoint_sha256)
    if name is None:
        return own
    unseen = {"train", "test", "root", "download", "fingerprint"}  # where it lies; the fingerprint says what it is
    if protocol.kind != "finetune":
        unseen |= {"augment"}
    section = data.model_dump(mode="json", exclude=unseen)
    return canonical_hash({"evaluation": own, "data": section, "fingerprint": inspect_data(data).fingerprint})
