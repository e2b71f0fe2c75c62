"""A run's identity: a hash of every field that changes what training computes, the seed and the data included."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from simlap.config.schema import KNN, Evaluation, Experiment, Transfer
from simlap.config.schema.plugins import origin_of, plugins_in

UNCOUNTED = {
    "name": "a label for people",
    "checkpoint": "when state is saved does not change the state",
    "evaluate": "evaluation never advances a training stream and has an id of its own",
    "resources": "W workers compute what one computes; `precision: auto` is resolved first",
}
"""Fields that do not count, and why: a study cannot vary them."""

EXCLUDED = UNCOUNTED | {
    "train.precision": "replaced by its resolved value",
    "data.train": "a path: the fingerprint of what lies there counts",
    "data.test": "a path: the fingerprint of what lies there counts",
    "data.image_column": "part of the fingerprint",
    "data.label_column": "part of the fingerprint",
    "data.root": "a path: the fingerprint of what lies there counts",
    "data.download": "how the data comes to be there does not change it",
    "data.max_bad_share": "decides when a run is refused, not which images stand in for others",
    "data.fingerprint": "the fingerprint itself counts",
    "backbone.weights": "a path: the fingerprint of the weights counts",
    "backbone.key_prefix": "part of the weights' fingerprint",
    "pretrain": "the id of the stage, which is a run of its own, counts",
    "train.compile": "changes the speed, and results by rounding only",
    "train.channels_last": "changes the speed, and results by rounding only",
    "train.loss": "changes the speed, and results by rounding only",
    "train.keys": "changes speed and memory, and results by rounding only",
    "train.max_skipped_steps": "decides when a run that diverges is given up, not what a step computes",
    "data.streaming.workers": "changes the speed only",
    "data.streaming.prefetch": "changes the speed only",
}
"""Fields left out of the identity as they stand, and why. A test holds this list against the schema."""

_PLACES = {path.removeprefix("data.") for path in EXCLUDED if path.startswith("data.")} - {"fingerprint"}
"""Fields of a dataset that its fingerprint stands for."""
_HEADLINE = 20
"""Of k-NN at its defaults; left out like other defaults."""


def training_part(experiment: Experiment, data_fingerprint: str, start: str | None = None) -> dict[str, Any]:
    """The canonical form: fields at their default left out, so that ids survive new fields. Arguments as in `cell_id`."""
    tree: dict[str, Any] = experiment.model_dump(mode="json", exclude_defaults=True)
    tree["seed"] = experiment.seed
    tree["schema_version"] = experiment.schema_version
    for path in EXCLUDED:
        node = tree
        *above, last = path.split(".")
        for key in above:
            node = node.get(key, {})
        node.pop(last, None)
    tree["data"]["fingerprint"] = data_fingerprint
    if start is not None:
        tree["start"] = start
    if plugins := plugins_in(experiment.method, "method"):
        tree["plugins"] = {path: origin_of(plugin).release for path, plugin in plugins.items()}
    if experiment.precision != "fp32":
        tree.setdefault("train", {})["precision"] = experiment.precision
    return {key: value for key, value in tree.items() if value != {}}


def canonical_json(value: object) -> str:
    """JSON with sorted keys and without spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def canonical_hash(value: object) -> str:
    """16 hex digits of the SHA-256 of the value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def cell_id(experiment: Experiment, data_fingerprint: str, start: str | None = None) -> str:
    """The id of the run (a hash of the canonical training part of the resolved experiment).

    Args:
        experiment: resolved.
        data_fingerprint: of its dataset.
        start: what the backbone starts from: the cell id of the `pretrain` stage, or the fingerprint of `backbone.weights`.
    """
    return canonical_hash(training_part(experiment, data_fingerprint, start))


def evaluation_id(evaluation: Evaluation, checkpoint_sha256: str) -> str:
    """The id of one evaluation of one checkpoint.

    When it runs along the way does not count, nor do fields at their default. A dataset of `transfer` counts by its fingerprint,
    where `check_experiment` has filled that in, and not by its place.
    """
    return canonical_hash({"protocol": _protocol(evaluation), "checkpoint": checkpoint_sha256})


def _protocol(evaluation: Evaluation) -> dict[str, Any]:
    """The canonical form of a protocol."""
    tree: dict[str, Any] = evaluation.model_dump(mode="json", exclude={"every_epochs"}, exclude_defaults=True)
    match evaluation:
        case KNN():  # the k that is meant, whether it is written or not
            tree.pop("headline", None)
            if evaluation.headline_k != _HEADLINE:
                tree["headline"] = evaluation.headline_k
        case Transfer():
            for section in tree["data"].values():
                for place in _PLACES if "fingerprint" in section else ():
                    section.pop(place, None)
            if "protocols" in tree:
                tree["protocols"] = [_protocol(protocol) for protocol in evaluation.protocols]
    return tree
