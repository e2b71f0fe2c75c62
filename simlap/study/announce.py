"""What `ablate` says before it starts: what will not fit the budget, what the planned seeds hardly show, what it leaves alone."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from simlap.study.plan import Plan
from simlap.study.reach import warnings
from simlap.study.stale import left_behind


def announce(plan: Plan, console: Console) -> None:
    """Print it, where there is something to be said. Nothing is asked: what does not fit stops in order."""
    for line in [*_beyond(plan), *warnings(plan), *filter(None, [left_behind(plan)])]:
        console.print(Text(line, style="yellow"), soft_wrap=True)


def _beyond(plan: Plan) -> list[str]:
    """The budget of device-hours, where the estimate exceeds it."""
    limit = plan.guard.budget.device_hours if plan.guard else None
    hours = plan.device_hours() if limit is not None else None
    if limit is None or hours is None or plan.spent.device_hours + hours <= limit:
        return []
    spent = f" and has used {plan.spent.device_hours:.2g}" if plan.spent.device_hours else ""
    return [
        f"the study needs about {hours:.2g} device-hours{spent}, the budget is {limit:g}: it will stop "
        "when that is reached, with cells left to be resumed; raise budget.device_hours, or take fewer seeds or arms (--only)"
    ]
