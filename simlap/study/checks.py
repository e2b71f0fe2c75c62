"""The checks of every arm before anything starts, without torch where they were made before.

What `simlap.train.check` finds depends on the arm's experiment without its seed and its name, on the files it speaks of, on our
code and on the versions of torch and timm. Arms that were found right are remembered under all of these (`simlap.record.cache`),
so the next plan of an edited file looks at new arms only. New ones are looked at in a process of their own: torch needs seconds
and hundreds of MiB.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from simlap import errors
from simlap.config import Experiment, canonical_hash
from simlap.config.identity import canonical_json, training_part
from simlap.config.schema import Data, Transfer
from simlap.config.schema.plugins import origin_of, plugins_in
from simlap.errors import UserError
from simlap.record import cache
from simlap.record.code import hash_of, modules, plugin_hash
from simlap.study.arms import Arm

_CHECKED_BY = ("simlap.train.check",)


@dataclass(frozen=True)
class CheckedStage:
    """One stage of an arm, found right: all but the seed of a run of its own."""

    experiment: Experiment
    """With the seed of the base; the datasets of `transfer` have their fingerprints."""
    fingerprint: str
    """Of its dataset."""
    weights: str | None
    """`weights:` and their fingerprint, where its backbone starts from a file."""
    form: dict[str, str]
    """The canonical form that names it, each section as JSON; seed and start still to be filled in."""

    def cell_id(self, seed: int, start: str | None) -> str:
        """As `simlap.config.cell_id`, without writing anew what all seeds have in common."""
        form = {**self.form, "seed": canonical_json(seed)} | (
            {"start": canonical_json(start)} if start is not None else {}
        )
        text = ",".join(f"{canonical_json(key)}:{form[key]}" for key in sorted(form))
        return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class NamedStage:
    """One stage of a cell: a run of its own."""

    checked: CheckedStage
    seed: int
    cell_id: str
    start: str | None
    """What its backbone starts from: the cell id of the stage before, `weights:` and a fingerprint, or None."""

    @property
    def fingerprint(self) -> str:
        return self.checked.fingerprint

    @property
    def experiment(self) -> Experiment:
        return self.checked.experiment.with_seed(self.seed)


def check_arms(arms: Sequence[Arm], file: str) -> list[tuple[CheckedStage, ...]]:
    """The stages of every arm, in the order they run. Raises UserError for the first arm that is wrong; `file`: named in it."""
    stamps: dict[str, str] = {}
    found = cache.Cache("checks")
    keys = [_key(arm.experiment, _salt(), stamps) for arm in arms]
    new = [i for i, key in enumerate(keys) if key not in found]
    answers = _check([(f"{file}: arm {arms[i].name}", arms[i].experiment) for i in new])
    for i, answer in zip(new, answers, strict=True):
        found.put(keys[i], answer)
    cache.save()
    return [tuple(_stages(arm.experiment, found[key])) for arm, key in zip(arms, keys, strict=True)]


def name_stages(stages: Sequence[CheckedStage], seed: int) -> tuple[NamedStage, ...]:
    """The runs of an arm with a seed. Ids are those of `simlap.config.cell_id`."""
    named: list[NamedStage] = []
    for stage in stages:
        start = named[-1].cell_id if named else stage.weights
        named.append(NamedStage(stage, seed, stage.cell_id(seed, start), start))
    return tuple(named)


_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "torchvision", "timm", "scikit-learn")


@functools.cache
def _salt() -> list[str]:
    """What the checks depend on besides the experiment, as it is when this process first checks something."""
    return [hash_of(modules(_CHECKED_BY, _ROOT), _ROOT), *(f"{name} {_version(name)}" for name in _PACKAGES)]


def _stages(experiment: Experiment, facts: list[dict[str, Any]]) -> Iterator[CheckedStage]:
    for stage, fact in zip(experiment.stages, facts, strict=True):
        protocols = list(stage.evaluate)
        for place, prints in fact["transfer"].items():
            protocol = protocols[int(place)]
            assert isinstance(protocol, Transfer)
            data = {
                name: section.model_copy(update={"fingerprint": prints[name]})
                for name, section in protocol.data.items()
            }
            protocols[int(place)] = protocol.model_copy(update={"data": data})
        if fact["transfer"]:
            stage = stage.model_copy(update={"evaluate": tuple(protocols)})
        form = {key: canonical_json(value) for key, value in training_part(stage, fact["fingerprint"]).items()}
        yield CheckedStage(stage, fact["fingerprint"], fact["weights"], form)


def check_here(asked: Sequence[tuple[str, Experiment]]) -> list[list[dict[str, Any]]]:
    """Make the checks in this process, which imports torch. (Where, experiment) -> the facts of each stage. Raises UserError."""
    from simlap.train.check import check_experiment

    inspected: dict[str, Any] = {}
    return [
        [
            {
                "fingerprint": stage.info.fingerprint,
                "weights": stage.start if stage.experiment.pretrain is None else None,
                "transfer": {
                    str(place): {name: data.fingerprint for name, data in protocol.data.items()}
                    for place, protocol in enumerate(stage.experiment.evaluate)
                    if isinstance(protocol, Transfer)
                },
            }
            for stage in check_experiment(experiment, file=where, inspected=inspected)
        ]
        for where, experiment in asked
    ]


def _check(asked: Sequence[tuple[str, Experiment]]) -> list[list[dict[str, Any]]]:
    if not asked or "torch" in sys.modules:  # here, torch would be loaded a second time
        return check_here(asked) if asked else []
    text = json.dumps([(where, experiment.model_dump(mode="json")) for where, experiment in asked])
    done = subprocess.run(
        [sys.executable, "-m", "simlap.study.checks"], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the checks ended with exit code {done.returncode}: {done.stderr.strip()}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if (wrong := answer.get("error")) is not None:
        raise getattr(errors, wrong.pop("type"))(wrong.pop("message"), **wrong)
    facts: list[list[dict[str, Any]]] = answer["facts"]
    return facts


def _key(experiment: Experiment, salt: list[str], stamps: dict[str, str]) -> str:
    """Everything that the checks of an experiment depend on."""
    text = experiment.model_dump_json(exclude={"name", "seed"})
    places = []
    for stage in experiment.stages:
        sections = [stage.data, *(d for e in stage.evaluate if isinstance(e, Transfer) for d in e.data.values())]
        places += [place for data in sections for place in _places(data)]
        places += [stage.backbone.weights] if stage.backbone.weights is not None else []
        salt = [*salt, *(f"{origin_of(p)} {plugin_hash(p)}" for p in plugins_in(stage.method, "method").values())]
    for place in places:
        if place not in stamps:
            stamps[place] = _stamp(place)
    return json.dumps([salt, text, [stamps[place] for place in places]])


def _places(data: Data) -> list[str]:
    """Where a dataset lies, as its section has it."""
    return [getattr(data, key) for key in ("train", "test", "root") if hasattr(data, key)]


def _stamp(place: str) -> str:
    """Changes with the names, sizes and times of the files at a place. `random` where it cannot be told: look every time."""
    try:
        if "://" in place:
            system, path = pafs.FileSystem.from_uri(place)
        else:
            system, path = pafs.LocalFileSystem(), str(Path(place).expanduser().absolute())
        info = system.get_file_info(path)
        if info.type == pafs.FileType.Directory:
            infos = system.get_file_info(pafs.FileSelector(path, recursive=True))
        else:
            infos = [info]
    except (OSError, ValueError):  # a name on a hub, say; the checks will tell
        return f"random {os.urandom(16).hex()}"
    return canonical_hash(sorted(f"{i.path} {i.size} {i.mtime_ns}" for i in infos))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _main() -> None:
    """The process of its own: experiments on the standard input, facts or the first error on the standard output."""
    asked = [(where, Experiment.model_validate_json(json.dumps(tree))) for where, tree in json.load(sys.stdin)]
    try:
        answer: dict[str, Any] = {"facts": check_here(asked)}
    except UserError as error:
        words = {key: getattr(error, key) for key in ("message", "file", "key", "value", "choices")}
        answer = {"error": {"type": type(error).__name__, **words}}
    print(json.dumps(answer, default=str))


if __name__ == "__main__":
    _main()
