"""What the gates of a checkpoint learnt, with pictures: from what is there already, and the rest computed in this process.

Kept beside the run, below `evaluations/gates/`: the analysis where the run itself has none (or one of an older version), and
pictures by the pairs they were asked for. Nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from simlap.config import canonical_hash, evaluation_id, schema
from simlap.config.schema import Experiment, Gates
from simlap.errors import ConfigError
from simlap.evaluate.gate_analysis import SCHEMA_VERSION
from simlap.evaluate.gate_pictures import Seen, gate_pictures
from simlap.evaluate.pair_heat import named_pairs, pair_heat, with_own
from simlap.record.journal import read_progress, read_rows
from simlap.record.view import EpochRow
from simlap.run.evaluate import Subject, own_evaluator
from simlap.storage import Storage
from simlap.train.evaluate import Evaluator

PICTURES_VERSION = 3


@dataclass(frozen=True)
class Look:
    """What a page shows."""

    artefact: dict[str, Any]
    """As the evaluation of `kind: gates` leaves it; `pair_gates` are those of the named pairs, where there are any."""
    pictures: dict[str, Any]
    """As `gate_pictures` makes them, with the `part` of the data that they are of."""
    training: list[EpochRow]
    """Finished epochs of the run up to the checkpoint; none where it lies by itself."""


def learnt_gates(experiment: Experiment) -> bool:
    """Whether there are gates that learnt something: with `kind: open` all are 1."""
    method = experiment.method
    return experiment.has_gates and not isinstance(getattr(method, "gate", None), schema.OpenGate)


def check_gates(experiment: Experiment) -> None:
    """Raises ConfigError where there is nothing to look at."""
    method = experiment.method
    if not experiment.has_gates:
        raise ConfigError("there are no gates", key="method.kind", value=method.kind)
    if not learnt_gates(experiment):
        raise ConfigError(
            "the filter is off: all its gates are 1, and nothing was learnt", key="method.gate.kind", value="open"
        )


def gates_protocol(experiment: Experiment) -> Gates:
    """That of the experiment, or the default one."""
    return next((one for one in experiment.evaluate if isinstance(one, Gates)), Gates(kind="gates"))


def stored_analysis(folder: Storage, protocol: Gates, checkpoint_sha256: str) -> dict[str, Any] | None:
    """The analysis that is kept in a folder of evaluations, None where there is none of this version."""
    identity = evaluation_id(protocol, checkpoint_sha256)
    for path in (f"{identity}.json", f"gates/{identity}.json"):
        try:
            found: dict[str, Any] = folder.read_json(path)
        except FileNotFoundError:
            continue
        if found.get("schema_version", 0) >= SCHEMA_VERSION:
            return found
    return None


class GateStudio:
    """A checkpoint whose gates are looked at. Model and data are loaded when something has to be computed.

    Args:
        subject: the checkpoint.
        folder: where evaluations are kept and looked for: `evaluations` of its run.
        protocol: settings of the analysis (default: the experiment's).
    """

    def __init__(self, subject: Subject, folder: Storage, protocol: Gates | None = None) -> None:
        check_gates(subject.experiment)
        self.subject, self.folder = subject, folder
        self.protocol = protocol or gates_protocol(subject.experiment)

    def look(self, pairs: Sequence[str] = ()) -> Look:
        """Everything a page shows. pairs: `cat:dog`, ...; none for those that stand out. Raises ConfigError for a wrong one."""
        artefact = self.analysis()
        chosen = named_pairs(pairs, artefact["class_names"])
        if chosen:
            artefact = {**artefact, "pair_gates": self._heat(pairs)}
        return Look(artefact, self._pictures(pairs, artefact), training_rows(self.subject))

    def analysis(self) -> dict[str, Any]:
        """The stored one, or a new one, which is stored."""
        sha256 = self.subject.checkpoint.sha256
        found = stored_analysis(self.folder, self.protocol, sha256)
        if found is None:
            found = self._evaluator.final(self.protocol).artefact
            assert found is not None
            self.folder.write_json(f"gates/{evaluation_id(self.protocol, sha256)}.json", found)
        return found

    @cached_property
    def _evaluator(self) -> Evaluator:
        return own_evaluator(self.subject, self.folder.child("features"))

    def _heat(self, pairs: Sequence[str]) -> dict[str, Any]:
        model, names = self._evaluator.model, self._evaluator.splits.class_names
        assert model.gates is not None
        return pair_heat(model.gates, with_own(named_pairs(pairs, names)), self._evaluator.world.device)

    def _pictures(self, pairs: Sequence[str], artefact: dict[str, Any]) -> dict[str, Any]:
        key = [PICTURES_VERSION, self.subject.checkpoint.sha256, list(pairs)]
        path = f"gates/pictures-{canonical_hash(key)}.json"
        if self.folder.exists(path):
            kept: dict[str, Any] = self.folder.read_json(path)
            return kept
        evaluator = self._evaluator
        part, splits = evaluator.selection, evaluator.splits
        images = splits.val if splits.val is not None else splits.test
        c = splits.num_classes
        distance = np.zeros((c, c))
        distance[np.triu_indices(c, 1)] = artefact["distance"]
        seen = Seen(evaluator.model, images, splits, evaluator.features(part))
        made = gate_pictures(seen, torch.from_numpy(distance + distance.T), named_pairs(pairs, splits.class_names))
        made["part"] = part
        self.folder.write_json(path, made)
        return made


def training_rows(subject: Subject) -> list[EpochRow]:
    """Of the run that the checkpoint is of, up to its epoch; none where the run has no journal."""
    if subject.run is None:
        return []
    rows = read_progress(subject.run, read_rows(subject.run)).rows
    return [row for row in rows if row.epoch <= subject.checkpoint.epoch]
