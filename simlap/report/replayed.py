"""The badge: what came of training one of a study's runs anew, in a sentence."""

from __future__ import annotations

from datetime import UTC, datetime

from simlap.record.replay import Difference, ReplayView

OTHER_CODE = "The code is not that of the record: a difference is then no sign that the record is wrong."


def badge(replay: ReplayView) -> str:
    """The verdict in two words."""
    return "replay equal" if replay.verdict == "equal" else "replay different"


def badge_text(replay: ReplayView) -> str:
    """What was compared, when, how, and with which result."""
    when = datetime.fromtimestamp(replay.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    epochs = "1 epoch" if replay.epochs == 1 else f"{replay.epochs} epochs"
    text = f"{replay.line}, seed {replay.seed} ({replay.cell_id}), was trained anew for {epochs} ({when}): "
    how = "bit for bit" if replay.exact else f"within {replay.tolerance}"
    if replay.verdict == "equal":
        text += f"all {replay.values} recorded values came out again, {how}."
    else:
        first = difference_text(replay.differences[0])
        text += f"{replay.different} of {replay.values} values differ (compared {how}); first {first}."
    if replay.unlike:
        text += f" Other than for the record: {'; '.join(replay.unlike)}."
    return text if replay.same_code else f"{text} {OTHER_CODE}"


def difference_text(one: Difference) -> str:
    """`epoch 1, train/loss: recorded 0.5, replayed 0.25`."""
    recorded = "nothing" if one.recorded is None else repr(one.recorded)
    replayed = "nothing" if one.replayed is None else repr(one.replayed)
    return f"epoch {one.epoch}, {one.name}: recorded {recorded}, replayed {replayed}"
