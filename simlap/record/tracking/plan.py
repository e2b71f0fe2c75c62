"""What MLflow should hold for a study, as plain data computed from its view. Pure: no MLflow, no clock, no files.

A study gives one run, one run per arm, stage and trial under it, and under its arm one run per cell that has started. What may
change later (planned seeds, baseline, resources, paths) is a tag; params are immutable and hold only what a cell's id covers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from simlap.config import yaml
from simlap.record.tracking.arms import arm_numbers, common_epoch
from simlap.record.tracking.names import MAX_PARAM, MAX_TAG, Point, clip, finite, flatten, safe_name
from simlap.record.tracking.notes import arm_note, cell_note, failure_note, study_note
from simlap.record.tracking.records import Artifact, DatasetPlan, OfConfig, RunPlan, Status
from simlap.record.tracking.views import saved_views
from simlap.record.view import ArmView, CellView, EpochRow, SearchView, StageView, StudyView, TrialView, Unread

STATUS: dict[str, Status] = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
"""States that end a run; every other state is RUNNING, since a run may be continued."""

CHANGEABLE = (
    "name", "schema_version", "resources", "checkpoint", "evaluate", "data.root", "data.train", "data.test", "data.download",
    "data.fingerprint", "backbone.weights", "backbone.key_prefix", "train.compile", "train.channels_last",
)  # fmt: skip
"""Config keys that are not part of a cell's identity: recorded as tags, because a later run may differ in them."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#8c6d31", "#d6276c", "#637939")
"""One per arm, in order of the study file (Okabe and Ito's palette first: distinguishable with colour blindness)."""


def plan_study(study: StudyView, report: Mapping[str, bytes], describe: Callable[[str], str] = str) -> list[RunPlan]:
    """Parents before children. `report`: files of the study's report by name; `describe`: a storage path in words."""
    summary = json.loads(report["summary.json"]) if "summary.json" in report else {}
    cells = [cell for arm in study.arms for cell in arm.cells]
    tried = [cell for search in study.searches for trial in search.trials for cell in trial.cells]
    starts, ends = _times([*cells, *(stage.cell for stage in study.stages), *tried])
    files = [Artifact(f"report/{name}", _hash(data), _constant(data)) for name, data in sorted(report.items())]
    if study.text:
        files.append(Artifact("study.yaml", _hash(study.text.encode()), _constant(study.text.encode())))
    # arms whose search goes on have no cells yet
    status = "RUNNING" if any(not arm.cells for arm in study.arms) else _overall(cells)
    tags = {
        "simlap.kind": "study",
        "simlap.study": study.name,
        "simlap.metric": study.metric,
        "simlap.report_metric": study.report_metric,
        "simlap.seeds": ", ".join(map(str, study.seeds)),
        "simlap.epochs": str(study.epochs),
        "simlap.scheduler": study.scheduler,
        "simlap.validation": _flag(study.validation),
        "simlap.cells": counts(cells),
        "mlflow.note.content": study_note(study, summary, MAX_TAG),
        "mlflow.runColor": "#4c4c4c",
        **({"simlap.claims": "\n".join(study.claims)} if study.claims else {}),
        **_source(study.command, study.provenance),
    }
    plans = [
        RunPlan(
            key="study", name=study.name, status=status, own_tags=_clip(tags), own_params={}, artifacts=files,
            start_ms=min(starts, default=None), end_ms=max(ends, default=None) if status != "RUNNING" else None,
            single=_cell_counts(cells), experiment_tags=saved_views(study),
        )
    ]  # fmt: skip
    seen: set[str] = set()
    for stage in study.stages:
        if stage.cell.cell_id not in seen and (stage.cell.state != "new" or stage.cell.rows):
            plans.append(_plan_stage(study, stage, describe))
            seen.add(stage.cell.cell_id)
    for search in study.searches:
        for trial in search.trials:
            for cell in trial.cells:
                if cell.cell_id not in seen and (cell.state != "new" or cell.rows):
                    plans.append(_plan_trial(study, search, trial, cell, describe))
                    seen.add(cell.cell_id)
    common = common_epoch(cells) if status != "RUNNING" else None
    for index, arm in enumerate(study.arms):
        colour = COLOURS[index % len(COLOURS)]
        plans.append(_plan_arm(study, arm, arm_numbers(study, arm, summary, common), colour))
        for cell in arm.cells:
            if cell.cell_id not in seen and (cell.state != "new" or cell.rows):
                plans.append(_plan_study_cell(study, arm, cell, colour, describe))
                seen.add(cell.cell_id)
    return plans


def plan_run(cell: CellView, describe: Callable[[str], str] = str) -> RunPlan:
    """A single run outside any study."""
    name = f"{cell.config.get('name', cell.cell_id[:8])} · seed {cell.seed}"
    return _plan_cell(cell, f"run:{cell.cell_id}", None, name, {"simlap.kind": "run"}, {}, describe)


def run_key(tags: Mapping[str, str]) -> str | None:
    """The key of a run that is already in MLflow, from its tags; None for runs of others."""
    kind = tags.get("simlap.kind")
    by_cell = dict.fromkeys(("stage", "trial", "cell", "run"), "simlap.cell_id")
    name = {"study": "", "arm": "simlap.arm", **by_cell}.get(kind or "")
    if kind is None or name is None:
        return None
    again = f":{tags['simlap.rerun']}" if "simlap.rerun" in tags else ""
    return f"{kind}:{tags.get(name)}{again}" if name else kind


def counts(cells: list[CellView]) -> str:
    """`30 planned: 28 done, 2 stopped`."""
    states = Counter(cell.state for cell in cells)
    return f"{len(cells)} planned: " + ", ".join(f"{number} {state}" for state, number in states.most_common())


def _cell_counts(cells: list[CellView]) -> dict[str, float]:
    states = Counter(cell.state for cell in cells)
    ended = {f"cells/{state}": float(states[state]) for state in ("done", "stopped", "failed")}
    return {"cells/planned": float(len(cells)), **ended}


def _plan_arm(study: StudyView, arm: ArmView, numbers: dict[str, float], colour: str) -> RunPlan:
    starts, ends = _times(arm.cells)
    status = _overall(arm.cells)
    tags = {
        "simlap.kind": "arm",
        "simlap.study": study.name,
        "simlap.arm": arm.name,
        "simlap.protected": _flag(arm.protected),
        "simlap.baseline": _flag(arm.is_baseline),
        "simlap.cells": counts(arm.cells),
        "simlap.report_metric": study.report_metric,
        "mlflow.note.content": arm_note(study, arm),
        "mlflow.runColor": colour,
        **_source(study.command, study.provenance),
        **_decided(study, arm),
    }
    return RunPlan(
        key=f"arm:{arm.name}", name=arm.name, status=status, own_tags=_clip(tags), own_params=_factors(arm), parent="study",
        start_ms=min(starts, default=None), end_ms=max(ends, default=None) if status != "RUNNING" else None,
        single=numbers,
    )  # fmt: skip


def _decided(study: StudyView, arm: ArmView) -> dict[str, str]:
    """What a race has decided about an arm."""
    decision = study.race.decisions.get(arm.name) if study.race is not None else None
    if decision is None:
        return {}
    verdict = decision.verdict if decision.leaves else "not decided yet"
    return {"simlap.verdict": verdict, "simlap.reason": decision.reason, "simlap.seeds_used": str(decision.seeds)}


def _plan_stage(study: StudyView, stage: StageView, describe: Callable[[str], str]) -> RunPlan:
    tags = {
        "simlap.kind": "stage",
        "simlap.study": study.name,
        "simlap.stage": stage.name,
        "simlap.used_by": f"{len(stage.used_by)} cells",
        "mlflow.runColor": "#9a9a9a",
    }
    name = f"{stage.name} · seed {stage.cell.seed}"
    return _plan_cell(stage.cell, f"stage:{stage.cell.cell_id}", "study", name, tags, {}, describe)


def _plan_trial(
    study: StudyView, search: SearchView, trial: TrialView, cell: CellView, describe: Callable[[str], str]
) -> RunPlan:
    tags = {
        "simlap.kind": "trial",
        "simlap.study": study.name,
        "simlap.search": search.name,
        "simlap.trial": str(trial.number),
        "mlflow.runColor": "#9a9a9a",
    }
    values = {safe_name(f"search.{name}"): clip(str(value), MAX_PARAM) for name, value in trial.values.items()}
    name = f"{search.name} · trial {trial.number} · seed {cell.seed}"
    return _plan_cell(cell, f"trial:{cell.cell_id}", "study", name, tags, values, describe)


def _plan_study_cell(
    study: StudyView, arm: ArmView, cell: CellView, colour: str, describe: Callable[[str], str]
) -> RunPlan:
    tags = {
        "simlap.kind": "cell",
        "simlap.study": study.name,
        "simlap.arm": arm.name,
        "simlap.protected": _flag(arm.protected),
        "simlap.baseline": _flag(arm.is_baseline),
        "mlflow.runColor": colour,
    }
    name = f"{arm.name} · seed {cell.seed}"
    return _plan_cell(cell, f"cell:{cell.cell_id}", f"arm:{arm.name}", name, tags, _factors(arm), describe)


def _plan_cell(
    cell: CellView,
    key: str,
    parent: str | None,
    name: str,
    tags: dict[str, str],
    factors: dict[str, str],
    describe: Callable[[str], str],
) -> RunPlan:
    params = {"seed": str(cell.seed)} | factors
    if cell.start is not None:
        params["start"] = cell.start
    params |= flatten({"plugins": cell.provenance["plugins"]}) if "plugins" in cell.provenance else {}
    rows = [row for row in cell.rows if row.epoch <= cell.durable_epoch]
    refused = _refused(rows, cell.result)
    if (again := cell.provenance.get("rerun")) is not None:  # its numbers before stay with the run that had them
        key, tags = f"{key}:{again}", tags | {"simlap.rerun": str(again)}
    tags = tags | {
        "simlap.cell_id": cell.cell_id,
        "simlap.seed": str(cell.seed),
        "simlap.state": cell.state,
        "simlap.directory": describe(f"cells/{cell.cell_id}"),
        **({"simlap.start": cell.start} if cell.start is not None else {}),
        **_source(str(cell.provenance.get("command") or ""), cell.provenance),
    }
    if note := cell_note(cell):
        tags["mlflow.note.content"] = note
    if refused:
        tags["simlap.non_finite"] = refused
    if cell.state == "stopped":
        tags["simlap.stopped"] = cell.reason or "stopped"
    content = _content(cell.config)
    artifacts = [Artifact("config.yaml", _hash(content), _constant(content))] if content else []
    if cell.state == "failed":
        error = cell.error or "no error message was recorded"
        tags |= {"simlap.error": error, "mlflow.note.content": failure_note(cell, error)}
        artifacts.append(Artifact("error.txt", _hash(error.encode()), _constant(error.encode())))
    result = finite(cell.result) if cell.state == "done" else {}
    last = rows[-1] if rows else EpochRow(cell.epoch, cell.ended_ms or cell.started_ms or 0, {})
    end_ms = cell.ended_ms or last.time_ms or None
    known = finite(last.metrics)
    status = STATUS.get(cell.state, "RUNNING")
    return RunPlan(
        key=key, name=name, status=status, parent=parent, own_tags=_clip(tags),
        own_params={safe_name(k): clip(v, MAX_PARAM) for k, v in params.items()},
        start_ms=cell.started_ms or (cell.rows[0].time_ms if cell.rows else None),
        end_ms=end_ms if status != "RUNNING" else None, rows=rows,
        single={f"final/{k.replace('/', '_')}": v for k, v in result.items()},
        closing=[Point(k, v, end_ms or 0, last.epoch) for k, v in result.items() if k not in known],
        read_config=lambda: _of_config(cell), artifacts=artifacts,
        config_stamp=f"{_hash(content)} {cell.provenance.get('data_fingerprint') or ''}",
        model_of=cell.cell_id if cell.state == "done" else None,
    )  # fmt: skip


def _content(config: Mapping[str, Any]) -> bytes:
    """As a file, empty where there is none."""
    if isinstance(config, Unread):
        return config.content
    return yaml.dump(dict(config)).encode() if config else b""


def _of_config(cell: CellView) -> OfConfig:
    # what the stages before it did is told by their own runs
    config = flatten({key: value for key, value in cell.config.items() if key != "pretrain"})
    changeable = {k: v for k, v in config.items() if any(k == c or k.startswith(f"{c}.") for c in CHANGEABLE)}
    params = {safe_name(k): clip(v, MAX_PARAM) for k, v in config.items() if k not in changeable}
    return OfConfig(_clip({f"simlap.config.{k}": v for k, v in changeable.items()}), params, _dataset(cell))


def _dataset(cell: CellView) -> DatasetPlan | None:
    """None where the provenance has no fingerprint: MLflow identifies a dataset by it."""
    fingerprint = cell.provenance.get("data_fingerprint")
    if not fingerprint:
        return None
    data = cell.config.get("data", {})
    source = str(data.get("source", "data"))
    train = data.get("train") or data.get("root")
    kind = ("s3" if str(train).startswith("s3://") else "local") if train else "code"
    where = {"uri": train, "test": data.get("test")} if train else {"source": source}
    return DatasetPlan(source, str(fingerprint)[:36], kind, json.dumps(where, sort_keys=True))


def _overall(cells: list[CellView]) -> Status:
    """Of a study or an arm: RUNNING until every cell has ended; FAILED if one failed; KILLED if all were stopped."""
    states = {STATUS.get(cell.state, "RUNNING") for cell in cells}
    if not states or "RUNNING" in states:
        return "RUNNING"
    if "FAILED" in states:
        return "FAILED"
    return "KILLED" if states == {"KILLED"} else "FINISHED"


def _refused(rows: list[EpochRow], result: Mapping[str, float]) -> str:
    """Says which values were NaN or infinite and are therefore not in MLflow; empty where none."""
    bad = [(name, row.epoch) for row in rows for name, value in row.metrics.items() if not math.isfinite(value)]
    bad += [(name, 0) for name, value in result.items() if not math.isfinite(value)]
    if not bad:
        return ""
    name, epoch = bad[0]
    return f"{len(bad)} values left out, first {name}" + (f" at epoch {epoch}" if epoch else "")


def _source(command: str, provenance: Mapping[str, Any]) -> dict[str, str]:
    """MLflow's own tags for program, commit and user, as far as the provenance knows them."""
    git = provenance.get("git")
    commit = git.get("commit") if isinstance(git, Mapping) else git if isinstance(git, str) else None
    found = {"mlflow.source.name": command, "mlflow.source.git.commit": commit, "mlflow.user": provenance.get("user")}
    tags = {key: str(value) for key, value in found.items() if value}
    return tags | ({"mlflow.source.type": "LOCAL"} if command else {})


def _times(cells: list[CellView]) -> tuple[list[int], list[int]]:
    return [c.started_ms for c in cells if c.started_ms], [c.ended_ms for c in cells if c.ended_ms]


def _factors(arm: ArmView) -> dict[str, str]:
    return {safe_name(f"factor.{name}"): clip(level, MAX_PARAM) for name, level in arm.levels.items()}


def _clip(tags: Mapping[str, str]) -> dict[str, str]:
    return {safe_name(key): clip(value, MAX_TAG) for key, value in tags.items()}


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _constant(data: bytes) -> Callable[[], bytes]:
    return lambda: data
