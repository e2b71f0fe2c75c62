"""ASHA over epochs, Ray's, with protected arms and rungs rebuilt from the journals."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from simlap.study.plan import Plan
from simlap.study.spec import Asha


class ProtectedAsha(AsyncHyperBandScheduler):
    """Ray's ASHA, but a protected cell is recorded at its rungs and never stopped, and rungs know earlier launches."""

    def __init__(self, *, metric: str, mode: str, asha: Asha, max_epochs: int) -> None:
        # max_t above the last epoch: a cell that reaches it ends by itself, as done and not as stopped
        super().__init__(
            time_attr="epoch",
            metric=metric,
            mode=mode,
            max_t=max(max_epochs, asha.grace_epochs) + 1,
            grace_period=asha.grace_epochs,
            reduction_factor=asha.reduction_factor,
        )
        self._name, self._sign = metric, 1.0 if mode == "max" else -1.0
        self.reasons: dict[str, str] = {}
        """Cell id -> why it was stopped."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        # decisions are kept by cell, not by trial: a resumed cell is a new trial
        self._known_as_cell(trial)
        decision: str = super().on_trial_result(tune_controller, _as_cell(trial), result)
        if decision == TrialScheduler.STOP and trial.config["cell"]["protected"]:
            return str(TrialScheduler.CONTINUE)
        if decision == TrialScheduler.STOP:
            self.reasons[trial.config["cell"]["cell_id"]] = self._reason(result)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """The end of a cell is no rung: its rungs were met on the way."""

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A failed cell keeps the rungs it reached."""

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """A removed cell keeps the rungs it reached."""

    def prefill(self, cell_id: str, epoch_values: Iterable[tuple[int, float]]) -> None:
        """Put an earlier launch's values into the rungs, as `on_trial_result` would have."""
        values = dict(epoch_values)
        for milestone, recorded in self._brackets[0]._rungs:
            if milestone in values:
                recorded[cell_id] = self._sign * values[int(milestone)]

    def rungs(self) -> dict[int, dict[str, float]]:
        """Epoch -> cell id -> value."""
        return {int(m): {c: self._sign * v for c, v in r.items()} for m, r in self._brackets[0]._rungs}

    def _known_as_cell(self, trial: Trial) -> None:
        self._trial_info.setdefault(trial.config["cell"]["cell_id"], self._brackets[0])

    def _reason(self, result: dict[str, Any]) -> str:
        bracket = self._brackets[0]
        milestone, recorded = next((m, r) for m, r in bracket._rungs if result["epoch"] >= m)
        return (
            f"asha: {self._name} {result[self._name]:.4f} at epoch {milestone} is not among the best "
            f"1/{bracket.rf:g} of {len(recorded)} cells"
        )


def _as_cell(trial: Trial) -> Any:
    return SimpleNamespace(trial_id=trial.config["cell"]["cell_id"])


def build_scheduler(plan: Plan) -> TrialScheduler:
    """The study's scheduler, with what is already known in its rungs."""
    spec = plan.study.spec
    if not isinstance(spec.scheduler, Asha):
        return FIFOScheduler()
    scheduler = ProtectedAsha(
        metric=spec.metric.name,
        mode=spec.metric.mode,
        asha=spec.scheduler,
        max_epochs=max(cell.experiment.train.epochs for cell in plan.cells),
    )
    for cell in plan.cells:
        name = spec.metric.name
        scheduler.prefill(
            cell.cell_id, ((row.epoch, row.metrics[name]) for row in cell.view.rows if name in row.metrics)
        )
    return scheduler
