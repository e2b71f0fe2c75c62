"""Under which circumstances a study's results were made: code, packages, machine, data; and where its runs differ in that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simlap.record.view import CellView, StudyView

_NAMES = {
    "git.commit": "git commit",
    "git.dirty": "working tree",
    "git.unknown": "git",
    "code": "hash of the code",
    "data_fingerprint": "data fingerprint",
    "data.fingerprint": "data fingerprint",
    "world_size": "workers of a run",
    "gpus_per_worker": "GPUs per worker",
    "cpus": "CPUs of the machine",
    "python": "Python",
}
DIRTY = "with changes that are in no commit"
_TREE = {"True": DIRTY, "False": "as committed"}
_FIRST = ("git.commit", "git.dirty", "git.unknown", "code", "data_fingerprint", "data.fingerprint", "python")
# what is another one in every run, or says nothing about how its numbers came about
_OWN = ("command", "start", "start_rerun", "rerun", "cpus", "platform", "host", "user")
MIXED_MATTERS = ("git.commit", "git.dirty", "code", "data_fingerprint", "data.fingerprint", "processor", "device")
"""Facts that results may differ by, besides the packages."""


@dataclass(frozen=True)
class Fact:
    """One circumstance, and the values it had."""

    key: str
    name: str
    """In words."""
    values: dict[str, int]
    """How many runs had which, most first; 0 runs: known of the launch only."""

    @property
    def mixed(self) -> bool:
        return len(self.values) > 1

    @property
    def matters(self) -> bool:
        return self.key in MIXED_MATTERS or self.key.startswith(("packages.", "plugins.")) or self.key == "python"


def facts_of(study: StudyView) -> list[Fact]:
    """Of all runs that have begun, code and data first; what only the launch noted is added."""
    counted: dict[str, dict[str, int]] = {}
    for cell in _runs(study):
        for key, text in flat(cell.provenance):
            if key not in _OWN:
                values = counted.setdefault(key, {})
                values[text] = values.get(text, 0) + 1
    if len(_fingerprints(study)) > 1:
        # arms over several datasets: of which one the launch noted says nothing
        launch = {k: v for k, v in study.provenance.items() if k != "data_fingerprint"}
    else:
        launch = study.provenance
    for key, text in flat(launch):
        if key != "command":
            counted.setdefault(key, {text: 0})
    order = {key: i for i, key in enumerate(_FIRST)}
    keys = sorted(counted, key=lambda key: (order.get(key, len(order)), key.startswith("packages."), key))
    return [Fact(key, _name(key), _said(key, counted[key])) for key in keys]


def mixed_text(facts: list[Fact], study: StudyView) -> list[str]:
    """In which facts that matter the runs differ, a line each; of the data only where the study does not vary them."""
    varied = _varies_data(study)
    return [
        f"{fact.name}: {', '.join(f'{value} ({_runs_text(count)})' for value, count in fact.values.items())}"
        for fact in facts
        if fact.mixed and fact.matters and not (varied and fact.key == "data_fingerprint")
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested provenance as `git.commit` and text; empty values left out."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{key}.")
        elif value not in (None, "", []):
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            text = f"{value:g}" if isinstance(value, float) else text
            found.append((f"{prefix}{key}", text))
    return found


def commit_of(facts: list[Fact]) -> str | None:
    """The commit that most runs are of."""
    return next((next(iter(fact.values)) for fact in facts if fact.key == "git.commit"), None)


def _runs(study: StudyView) -> list[CellView]:
    return [cell for arm in study.arms for cell in arm.cells if cell.provenance]


def _fingerprints(study: StudyView) -> set[str]:
    return {str(cell.provenance["data_fingerprint"]) for cell in _runs(study) if "data_fingerprint" in cell.provenance}


def _varies_data(study: StudyView) -> bool:
    """Whether arms differ in their data by what the study varies: within each arm all seeds have the same."""
    by_arm = [
        {c.provenance["data_fingerprint"] for c in arm.cells if "data_fingerprint" in c.provenance}
        for arm in study.arms
    ]
    return all(len(found) <= 1 for found in by_arm) and len(set().union(*by_arm)) > 1


def _said(key: str, values: Mapping[str, int]) -> dict[str, int]:
    ordered = sorted(values.items(), key=lambda pair: -pair[1])
    return {_TREE.get(text, text) if key == "git.dirty" else text: count for text, count in ordered}


def _name(key: str) -> str:
    return _NAMES.get(key, key.removeprefix("packages."))


def _runs_text(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
