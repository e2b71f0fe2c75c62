"""ASHA over epochs, Ray's, with protected arms and rungs rebuilt from the journals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from simlap.study.plan import Plan
from simlap.study.scheduling import Asha


class InOrder(FIFOScheduler):
    """Every cell runs to its end, in the order in which it is handed out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Ray's

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Tune starts what is handed out by itself; looking through all trials on every event would take ever longer."""
        return None


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
        self._undecided: dict[str, dict[str, Any]] = {}
        self.reasons: dict[str, str] = {}
        """Cell id -> why it was stopped."""
        self.promotions: dict[str, dict[str, Any]] = {}
        """Cell id -> the rung that it was let past in its last report, and why; whoever writes it down removes it."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        cell = trial.config["cell"]
        if "epoch" not in result or self._name not in result:
            return str(TrialScheduler.CONTINUE)
        # decisions are kept by cell, not by trial: a resumed cell is a new trial
        shadow = SimpleNamespace(trial_id=cell["cell_id"])
        self._trial_info.setdefault(cell["cell_id"], self._brackets[0])
        reports = [result]
        if cell["cell_id"] in self._undecided:
            reports.insert(0, self._undecided.pop(cell["cell_id"]))
        for report in reports:
            rung = self._next_rung(cell["cell_id"], report["epoch"])
            decision: str = super().on_trial_result(tune_controller, shadow, report)  # type: ignore[arg-type]
            # a cell at its last epoch ends by itself, after its evaluation on the test set
            at_end = report["epoch"] >= cell["epochs"]
            if decision == TrialScheduler.STOP and not cell["protected"] and not at_end:
                self.reasons[cell["cell_id"]] = self._reason(report)
                return decision
            if rung is not None:
                self.promotions[cell["cell_id"]] = self._promotion(rung, report, cell, decision)
        return str(TrialScheduler.CONTINUE)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """As `InOrder`: nothing is ever paused."""
        return None

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """The end of a cell is no rung: its rungs were met on the way."""

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A failed cell keeps the rungs it reached."""

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """A removed cell keeps the rungs it reached."""

    def prefill(self, cell_id: str, reached: int, values: dict[int, float], *, pending: bool) -> None:
        """Put an earlier launch's values into the rungs, as `on_trial_result` would have.

        A pending cell that stands exactly at a rung may have died before its decision: that is made up for when it
        reports again.

        Args:
            cell_id: of the cell.
            reached: finished epochs.
            values: the metric by epoch, where it was measured.
            pending: whether the cell goes on.
        """
        for milestone, recorded in self._brackets[0]._rungs:
            known = [epoch for epoch in values if epoch <= milestone]
            if reached < milestone or not known:
                continue
            value = values[max(known)]  # between two measurements Tune carries the last value on
            if pending and reached == milestone:
                self._undecided[cell_id] = {"epoch": reached, self._name: value}
            else:
                recorded[cell_id] = self._sign * value

    def rungs(self) -> dict[int, dict[str, float]]:
        """Epoch -> cell id -> value."""
        return {int(m): {c: self._sign * v for c, v in r.items()} for m, r in self._brackets[0]._rungs}

    def _next_rung(self, cell_id: str, epoch: int) -> int | None:
        """The rung at which a report of this epoch would be judged."""
        rungs = self._brackets[0]._rungs
        return next((int(m) for m, recorded in rungs if epoch >= m and cell_id not in recorded), None)

    def _promotion(self, rung: int, report: dict[str, Any], cell: dict[str, Any], decision: str) -> dict[str, Any]:
        bracket = self._brackets[0]
        known = next(len(recorded) for m, recorded in bracket._rungs if m == rung)
        if decision != TrialScheduler.STOP:
            why = f"is among the best 1/{bracket.rf:g} of {known} cells"
        else:
            why = "would not do, but the cell is protected" if cell["protected"] else "is of the last epoch"
        return {"epoch": rung, "reason": f"asha: {self._name} {report[self._name]:.4f} at epoch {rung} {why}"}

    def _reason(self, result: dict[str, Any]) -> str:
        bracket = self._brackets[0]
        milestone, recorded = next((m, r) for m, r in bracket._rungs if result["epoch"] >= m)
        return (
            f"asha: {self._name} {result[self._name]:.4f} at epoch {milestone} is not among the best "
            f"1/{bracket.rf:g} of {len(recorded)} cells"
        )


def build_scheduler(plan: Plan) -> TrialScheduler:
    """The study's scheduler, with what is already known in its rungs."""
    spec = plan.study.spec
    if not isinstance(spec.scheduler, Asha):
        return InOrder()
    scheduler = ProtectedAsha(
        metric=spec.metric.name,
        mode=spec.metric.mode,
        asha=spec.scheduler,
        max_epochs=max(cell.experiment.train.epochs for cell in plan.cells),
    )
    for cell in plan.cells:
        if cell.facts.state == "new":
            continue
        name = spec.metric.name
        values = {row.epoch: row.metrics[name] for row in cell.view.rows if name in row.metrics}
        scheduler.prefill(cell.cell_id, cell.view.epoch, values, pending=cell.pending)
    return scheduler
