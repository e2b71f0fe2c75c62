"""Whether a study's metrics are among those that its experiments compute, when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simlap.config import Experiment
from simlap.errors import ConfigError
from simlap.evaluate.names import metric_names

if TYPE_CHECKING:
    from simlap.study.spec import StudySpec


def check_metrics(spec: StudySpec, experiments: Sequence[Experiment], file: str) -> None:
    """`check_metric` for all arms; those that measure the same are looked at once."""
    epochs = max(experiment.train.epochs for experiment in experiments)
    checked = set()
    for experiment in experiments:
        # the arms hold these objects, so their ids stay their own
        measured = (*map(id, experiment.evaluate), experiment.data.validation == "none")
        if measured not in checked:
            check_metric(spec, experiment, epochs, file)
            checked.add(measured)


def check_metric(spec: StudySpec, experiment: Experiment, epochs: int, file: str) -> None:
    """Raises ConfigError where an arm does not measure what the study decides on or reports.

    Args:
        spec: the study.
        experiment: of the arm.
        epochs: of the longest arm.
        file: named in errors.
    """
    split = "test" if experiment.data.validation == "none" else "val"
    computed = [metric_names(evaluation, split) for evaluation in experiment.evaluate]
    decided = [name for names in computed for name in names] + ["train/loss", "train/probe_top1"]
    if spec.metric.name not in decided:
        hint = "the test set never decides; " if spec.metric.name.startswith("test/") and split == "val" else ""
        raise ConfigError(
            f"{hint}not a metric that the experiment computes", file=file, key="metric.name", value=spec.metric.name,
            choices=decided,
        )  # fmt: skip
    rungs = spec.scheduler.rungs(epochs)
    declared = getattr(spec.compare, "epoch", None)
    for i, (evaluation, names) in enumerate(zip(experiment.evaluate, computed, strict=True)):
        every = evaluation.every_epochs
        unmeasured = [rung for rung in rungs if not every or rung % every]
        if spec.metric.name in names and unmeasured:
            raise ConfigError(
                f"is not measured at the epochs at which {spec.scheduler.kind} decides ({', '.join(map(str, unmeasured))}): "
                f"in the experiment, evaluate.{i}.every_epochs is {'null' if every is None else every} and must divide them",
                file=file, key="metric.name", value=spec.metric.name,
            )  # fmt: skip
        missed = declared is not None and declared != experiment.train.epochs and (not every or declared % every)
        if spec.metric.name in names and missed:
            raise ConfigError(
                f"{spec.metric.name} is not measured there: in the experiment, evaluate.{i}.every_epochs is "
                f"{'null' if every is None else every}", file=file, key="compare.epoch", value=declared,
            )  # fmt: skip
    tested = [name for evaluation in experiment.evaluate for name in metric_names(evaluation, "test")]
    reported = [name for name in tested if name.startswith("test/")]
    if spec.metric.report not in reported:
        raise ConfigError(
            "not a metric that the experiment computes on the test set", file=file, key="metric.report",
            value=spec.metric.report, choices=reported,
        )  # fmt: skip
