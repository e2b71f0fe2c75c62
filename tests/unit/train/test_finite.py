"""Steps that are not finite: nothing changes, they are counted, a resumed run counts them too, and too many are said."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from simlap import rng
from simlap.config import Experiment
from simlap.data.batch import Batch
from simlap.data.splits import Splits, load_splits
from simlap.storage import Storage
from simlap.train import loop
from simlap.train.checkpoint import CheckpointStore
from simlap.train.features import DivergedError
from simlap.train.finite import _SMALL, _finite, backward
from simlap.train.optim import learning_rate, set_learning_rate
from simlap.train.seeding import seed
from simlap.train.step import TrainState, build, gradients, train_epoch, train_step
from simlap.train.world import World
from tests.tiny import tiny

Place = tuple[int, int]
"""Epoch and step, from 0."""


def experiment(**changes: Any) -> Experiment:
    """5 steps an epoch."""
    quick = {"data__fraction": 0.2, "train__batch_size": 50, "train__epochs": 2, "evaluate": [{"kind": "probe"}]}
    return tiny(**{**quick, **changes})


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_splits(experiment().data)


class Poisoned:
    """A loader with one pixel that is NaN in some batches."""

    def __init__(self, loader: Any, places: set[Place]) -> None:
        self._loader, self._places = loader, places
        self.steps_per_epoch = loader.steps_per_epoch

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(self._loader.batches(epoch, start_step), start=start_step):
            if (epoch, step) in self._places:
                images = batch.images.clone()
                images[7, 0, 3, 4] = math.nan
                batch = batch.with_images(images)
            yield batch


def poison(state: TrainState, places: set[Place]) -> TrainState:
    state.loader = Poisoned(state.loader, places)  # type: ignore[assignment]
    return state


def stop_at(step: int) -> Callable[[], bool]:
    asked = itertools.count()
    return lambda: next(asked) >= step


def everything(state: TrainState) -> dict[str, Tensor]:
    """Copies of the tensors of the model, its moving average and the optimiser."""
    snapshot = state.snapshot()
    return {
        name: value.clone() for part in (snapshot.model, snapshot.optimizer) for name, value in part.items()
    }  # fmt: skip


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# --- what a step that is left out leaves -----------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {},
    "sgd": {"optim__name": "sgd", "optim__clip_grad": 0.5},
    "plain": {"optim__name": "sgd", "optim__momentum": 0.0},
    "lamb": {"optim__name": "lamb"},
    "lars": {"optim__name": "lars"},
    "muon": {"optim__name": "muon", "optim__lr": 0.01},
    "in parts": {"train__micro_batch_size": 16},
    "fuse": {"method": {"kind": "fuse", "embed_dim": 8, "projector_hidden_dim": 8}},
    "bf16": {"train__precision": "bf16", "train__channels_last": True},
}


def spoil(state: TrainState, quantity: str) -> None:
    """From now on."""
    if quantity == "image":
        poison(state, {(0, step) for step in range(2, 99)})
    elif quantity == "loss":
        criterion = state.model.criterion

        def infinite(*args: Any) -> Any:
            output = criterion(*args)
            return output._replace(loss=output.loss - math.inf)

        state.model.criterion = infinite  # type: ignore[method-assign, assignment]
    else:
        parameter = state.model.get_parameter("backbone.3.weight")

        def one_element(grad: Tensor) -> Tensor:
            spoilt = grad.clone()
            spoilt[0, 0, 1, 2] = math.inf
            return spoilt

        parameter.register_hook(one_element)


WHAT = {
    "image": "an image is not finite",
    "loss": "train/loss is -inf",
    "gradient": "the gradient of backbone.3.weight is not finite",
}


@pytest.mark.parametrize("waits", [True, False], ids=["host", "device"])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("quantity", WHAT)
def test_nothing_is_changed(splits: Splits, quantity: str, name: str, waits: bool) -> None:
    state = build(experiment(**SETTINGS[name], train__max_skipped_steps=3), splits, World())
    state.guard.waits = waits
    assert not train_epoch(state, stop_at(2))
    before = everything(state)
    spoil(state, quantity)
    assert not train_epoch(state, stop_at(1))
    assert_equal(everything(state), before)
    assert (state.step, state.guard.skipped.epoch, state.guard.skipped.in_a_row) == (3, 1, 1)
    with pytest.raises(DivergedError) as raised:
        train_epoch(state)
    assert f"{WHAT[quantity]} in epoch 1, step 3; 3 steps in a row" in str(raised.value)
    assert_equal(everything(state), before)


def test_the_moving_average_is_left_alone(splits: Splits) -> None:
    state = poison(build(experiment(train__ema_decay=0.75), splits, World()), {(0, 0), (0, 3)})
    seen: list[dict[str, Tensor]] = []

    def look() -> bool:
        seen.append(everything(state))
        return False

    assert train_epoch(state, look)
    fresh, still_fresh, first, second, left_out = seen
    assert_equal(still_fresh, fresh)
    averaged = [name for name in first if name.startswith("ema.")]
    assert averaged
    for name in averaged:
        assert torch.equal(first[name], first[name.removeprefix("ema.")]), "it begins with what was learnt first"
    assert_equal(left_out, second)
    assert any(not torch.equal(second[name], first[name]) for name in averaged)


# --- a finite run ----------------------------------------------------------------------------------------------------


def bare_epoch(state: TrainState) -> None:
    """The loop without a guard."""
    state.wrapped.train()
    settings = state.experiment
    for step, batch in enumerate(state.loader.batches(0)):
        state.step = step
        rate = learning_rate(settings.optim, step, steps_per_epoch=state.loader.steps_per_epoch, epochs=2)
        set_learning_rate(state.optimizer, rate)
        gradients(state, batch)
        if settings.optim.clip_grad is not None:
            nn.utils.clip_grad_norm_(state.model.parameters(), settings.optim.clip_grad)
        seed(rng.key(settings.seed, "optimizer", 0, step), state.world.device)
        state.optimizer.step()


@pytest.mark.parametrize("waits", [True, False], ids=["host", "device"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_finite_run_is_the_same_bits(splits: Splits, name: str, waits: bool) -> None:
    guarded, bare = (build(experiment(**SETTINGS[name]), splits, World()) for _ in range(2))
    guarded.guard.waits = waits
    assert train_epoch(guarded)
    bare_epoch(bare)
    assert_equal(everything(guarded), everything(bare))
    assert guarded.guard.skipped.run == 0


class _Waited(AssertionError):
    pass


class _NoWaiting(TorchDispatchMode):
    """What would wait for a device is an error."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            raise _Waited(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["adam", "sgd", "lars"])
def test_a_step_on_a_device_waits_for_nothing(splits: Splits, name: str) -> None:
    state = poison(build(experiment(**SETTINGS[name]), splits, World()), {(0, 2)})
    state.guard.waits = False
    state.wrapped.train()
    found: list[Tensor | None] = []
    for step, batch in enumerate(state.loader.batches(0)):
        state.step = step
        if step == 0:
            with pytest.raises(_Waited), _NoWaiting():  # the mode would see it
                train_step(state, batch)
            train_step(state, batch)
            continue
        output = gradients(state, batch)
        with _NoWaiting():  # optimisers that count on the host (muon, lamb) read what is there
            state.guard.remember()
            assert state.guard.judge(batch.images, output.loss, 0, state.step)
            state.guard.update()
            found.append(state.guard.counted(torch.ones(2)))
    values = [value.tolist() for value in found if value is not None]
    assert values == [[1, 1], [0, 0], [1, 1], [1, 1]]
    assert state.guard.skipped.run == 0
    state.guard.settle()
    assert state.guard.skipped.run == 1


# --- counted, and not for ever ---------------------------------------------------------------------------------------


class Rows:
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def start(self, epoch: int, step: int) -> None: ...

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        self.rows.append({name: value for name, value in metrics.items() if not name.startswith("time/")})

    def evaluated(
        self, evaluation_id: str, metrics: dict[str, float], artefact: dict[str, Any] | None = None
    ) -> None: ...


@pytest.fixture(name="run")
def _run(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Train to the end with batches that are not finite, asked to stop after so many steps each time."""

    def run(
        settings: Experiment, places: set[Place], stops: tuple[int, ...] = (), waits: bool = True
    ) -> dict[str, Any]:
        def poisoned(*args: Any) -> TrainState:
            state = poison(build(*args), places)
            state.guard.waits = waits
            return state

        monkeypatch.setattr(loop, "build", poisoned)
        store = CheckpointStore(
            Storage(tmp_path / f"{sorted(places)}-{stops}-{waits}-{settings.train.max_skipped_steps}")
        )
        rows = Rows()
        for stop in (*map(stop_at, stops), lambda: False):
            *_, last = loop.fit(settings, splits, world=World(), store=store, reporter=rows, stop=stop)
        assert last.finished
        newest = store.newest()
        assert newest is not None
        return {
            "rows": rows.rows,
            "tensors": {**newest.model, **newest.optimizer},
            "state": copy.deepcopy(newest.state),
        }

    return run


@pytest.mark.parametrize("waits", [True, False], ids=["host", "device"])
def test_a_resumed_run_counts_what_was_left_out(run: Any, waits: bool) -> None:
    places = {(0, 1), (0, 2), (1, 0), (1, 4)}
    settings = experiment(optim__lr=0.001)
    whole = run(settings, places, waits=waits)
    assert [row["train/skipped_steps"] for row in whole["rows"]] == [2, 2]
    parts = run(settings, places, (2, 1, 3), waits=waits)
    assert parts["rows"] == whole["rows"]
    assert_equal(parts["tensors"], whole["tensors"])
    for name in ("sums", "skipped", "losses"):
        assert str(parts["state"][name]) == str(whole["state"][name])  # NaN equals itself in writing
    assert sum(math.isnan(loss) for loss in whole["state"]["losses"][0]) == 4
    clean = run(settings, set(), waits=waits)
    assert all("train/skipped_steps" not in row for row in clean["rows"])


def test_what_was_left_out_has_no_part_in_the_metrics(splits: Splits) -> None:
    state = poison(build(experiment(), splits, World()), {(0, 1), (0, 4)})
    assert train_epoch(state)
    losses = [loss for loss in state.guard.losses if math.isfinite(loss)]
    assert len(losses) == 3
    metrics = loop._epoch_metrics(state)
    assert metrics["train/loss"] == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert metrics["train/skipped_steps"] == 2


@pytest.mark.parametrize("stops", [(), (3, 1)])
def test_too_many_in_a_row_over_epochs_and_interruptions(run: Any, stops: tuple[int, ...]) -> None:
    places = {(0, 1), (0, 3), (0, 4), (1, 0)}
    if not stops:
        run(experiment(train__max_skipped_steps=4), places)
    with pytest.raises(
        DivergedError, match=r"3 steps in a row were left out \(train.max_skipped_steps: 3\): look at the data"
    ):
        run(experiment(train__max_skipped_steps=3), places, stops)


def test_an_epoch_without_a_step_has_no_metrics(run: Any) -> None:
    with pytest.raises(DivergedError, match=r"an image is not finite in epoch 2, step 1; 5 steps in a row"):
        run(experiment(), {(1, step) for step in range(5)})


# --- what decides ----------------------------------------------------------------------------------------------------

numbers = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(numbers, st.sampled_from([1, 3, _SMALL - 1, _SMALL])), min_size=1, max_size=4))
def test_finite_means_every_element(parts: list[tuple[float, int]]) -> None:
    gradients = [torch.zeros(size) for _, size in parts]
    for gradient, (value, size) in zip(gradients, parts, strict=True):
        gradient[size // 2] = value
    assert _finite(gradients) == all(math.isfinite(value) for value, _ in parts)


def test_a_sum_that_overflows_is_no_fault() -> None:
    assert _finite([torch.full((100,), 3e38)])


@given(numbers)
def test_a_loss_that_is_not_finite_reaches_the_gradient(value: float) -> None:
    x = torch.tensor([0.5, -2.0], requires_grad=True)
    backward((x * torch.tensor([3.0, 0.0])).sum() + value)
    assert x.grad is not None
    if math.isfinite(value):
        assert x.grad.tolist() == [3.0, 0.0]
    else:
        assert x.grad.isnan().all()
