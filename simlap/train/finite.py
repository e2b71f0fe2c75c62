"""Steps whose gradient is not finite are left out: by all workers alike, counted, and not for ever.

What decides are the gradients of the global batch, which are the same bits on all workers: nothing more is exchanged. A loss
that is not finite makes them so (`backward`). On a CPU the host looks at them. On CUDA no step waits for the device: it selects
what it held before, and the host learns of it some steps later, all workers in the same step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simlap.train.features import DivergedError
from simlap.train.optim import fused
from simlap.train.spikes import WINDOW
from simlap.train.world import World

_EVERY = 64
"""So many steps' numbers are fetched from a device at once, while as many more run."""
_SMALL = 2**14
"""Gradients of fewer numbers are put together: there it is the number of operations that takes the time."""
_QUANTITIES = ("images", "loss", "gradient")
"""In the order in which a step meets them: what is wrong with one makes the later ones wrong."""
_REMEDIES = {
    "images": "look at the data, data.std and data.augment; where they are right, at the machine's memory",
    "loss": "lower optim.lr, raise the temperature, or set optim.clip_grad or train.precision: fp32",
    "gradient": "lower optim.lr, raise the temperature, or set train.precision: fp32",
}


def backward(loss: Tensor) -> None:
    """`loss.backward()`; where the loss is not finite, its gradient is NaN, whatever the loss is made of."""
    loss.backward(loss.detach() * 0 + 1)


@dataclass
class Skipped:
    """Numbers of steps that were left out; the same on all workers."""

    epoch: int = 0
    """In the epoch under way."""
    run: int = 0
    """In the whole run."""
    in_a_row: int = 0
    """Up to now, without a finite one in between."""


@dataclass(frozen=True)
class _Fault:
    """The first thing that was not finite in a step, as this worker saw it."""

    epoch: int
    step: int
    quantity: str
    text: str


class Guard:
    """Decides whether a step counts, and leaves things as they were where it does not.

    `remember`, the gradients, `judge`, `update` make a step; `settle` after the last one. All workers must call them together.

    Args:
        model: on its device, with the modules it is trained with.
        optimizer: of its parameters.
        world: the data-parallel world.
        limit: so many steps left out in a row are too many.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World, limit: int) -> None:
        self._model, self._optimizer, self._world, self._limit = model, optimizer, world, limit
        self.skipped = Skipped()
        self.losses: list[float] = []
        """This worker's shares of the losses of this epoch's steps, NaN where they were left out, and before them of the last
        `WINDOW` steps of the epoch before."""
        self.waits = world.device.type != "cuda"
        """Whether the host looks at every step. It always does until one was finite: only then the optimiser has a state
        that can be kept."""
        self._begun = False
        self._finite: bool | Tensor = True
        self._first: _Fault | None = None
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.numel()]
        self._names, self.parameters = [name for name, _ in named], [p for _, p in named]
        self._buffers: _Kept | None = None
        self._rows: list[_Row] = []
        self._under_way: _Fetched | None = None

    def remember(self) -> None:
        """Keep what the forward pass changes: the persistent buffers, running statistics above all."""
        if self._buffers is None:
            saved = self._model.state_dict(keep_vars=True)
            self._buffers = _Kept([b for name, b in self._model.named_buffers() if name in saved])
        self._buffers.take()

    def judge(self, images: Tensor, loss: Tensor, epoch: int, step: int) -> bool:
        """False where the step is known to be left out: nothing is to be updated then.

        Args:
            images: this worker's [b, ...].
            loss: its loss, whose average over the workers is the global batch's.
            epoch, step: the step's place, from 0.

        Raises:
            DivergedError: too many steps in a row were left out.
        """
        assert self._buffers is not None
        found = [grad for p in self.parameters if (grad := p.grad) is not None]
        if self.waits or not self._begun:
            self._finite = finite = _finite(found)
            self._begun |= finite
            share = loss.item() / self._world.size
            if finite:
                self._count(share, None)
                return True
            self._buffers.put_back()
            bad = [name for name, grad in zip(self._reached(), found, strict=True) if not grad.isfinite().all()]
            self._count(share, _fault(epoch, step, images.sum().item(), share, bad))
            return False
        largest = torch._foreach_norm(found, math.inf)
        numbers = torch.stack([images.sum(), loss.detach(), *largest])
        self._finite = numbers[2:].amax() < math.inf
        self._buffers.select(self._finite)
        self._rows.append(_Row(epoch, step, self._reached(), numbers))
        if len(self._rows) == _EVERY:
            self._fetch()
        return True

    @torch.no_grad()
    def update(self) -> None:
        """The optimiser's step; it changes nothing where the device found that the step is to be left out.

        Counters that an optimiser keeps on the host count it all the same.
        """
        finite, optimizer = self._finite, self._optimizer
        if isinstance(finite, bool):
            optimizer.step()
        elif fused(optimizer):
            taking: Any = optimizer
            taking.found_inf = (~finite).float()  # as torch's gradient scaler gives it: the kernel itself does nothing
            optimizer.step()
            del taking.found_inf
        else:
            parameters = [(p, p.clone()) for p in self.parameters]
            state = [
                (entry, name, value.clone())
                for entry in (*optimizer.state.values(), *optimizer.param_groups)
                for name, value in entry.items()
                if isinstance(value, Tensor) and value.device == finite.device
            ]
            optimizer.step()
            for parameter, before in parameters:
                torch.where(finite, parameter, before, out=parameter)
            for entry, name, before in state:
                entry[name] = torch.where(finite, entry[name], before)

    def counted(self, values: Tensor) -> Tensor | None:
        """A step's numbers as they are added up: as they are, zeros, or None where the host knows that they do not count."""
        if isinstance(self._finite, bool):
            return values if self._finite else None
        return torch.where(self._finite, values, torch.zeros_like(values))

    def settle(self) -> None:
        """Learn of all steps so far. Raises DivergedError as `judge` does."""
        for _ in range(2):
            self._fetch()

    def next_epoch(self) -> None:
        """Begin to count anew, with the losses that the next ones are held against."""
        self.skipped.epoch = 0
        self.losses = self.losses[-WINDOW:]

    def error(self) -> DivergedError:
        """What is wrong, where steps are left out now. All workers must ask together."""
        first = self._first
        assert first is not None
        faults, whom = [first], ""
        if self._world.size > 1:
            faults = [first] * self._world.size
            torch.distributed.all_gather_object(faults, first)
            first = min(faults, key=lambda fault: _QUANTITIES.index(fault.quantity))
            # gradients were averaged before anyone looked
            if first.quantity != "gradient":
                ranks = [str(rank) for rank, fault in enumerate(faults) if fault.quantity == first.quantity]
                whom = f" on worker{'s' * (len(ranks) > 1)} {', '.join(ranks)} of {self._world.size}"
        return DivergedError(
            f"{first.text}{whom} in epoch {first.epoch + 1}, step {first.step + 1}; {self.skipped.in_a_row} steps in a row were "
            f"left out (train.max_skipped_steps: {self._limit}): {_REMEDIES[first.quantity]}"
        )

    def _reached(self) -> list[str]:
        """Names of the parameters that have a gradient now."""
        return [name for name, p in zip(self._names, self.parameters, strict=True) if p.grad is not None]

    def _fetch(self) -> None:
        """Look at the rows that were sent for, and send for those that have come since."""
        before, self._under_way = self._under_way, _Fetched(self._rows) if self._rows else None
        self._rows = []
        for row, numbers in before.rows() if before is not None else ():
            images, loss, *largest = numbers
            bad = [name for name, value in zip(row.names, largest, strict=True) if not math.isfinite(value)]
            share = loss / self._world.size
            self._count(share, _fault(row.epoch, row.step, images, share, bad) if bad else None)

    def _count(self, loss: float, fault: _Fault | None) -> None:
        skipped = self.skipped
        self.losses.append(loss if fault is None else math.nan)
        if fault is None:
            skipped.in_a_row, self._first = 0, None
            return
        self._first = self._first or fault
        skipped.epoch, skipped.run, skipped.in_a_row = skipped.epoch + 1, skipped.run + 1, skipped.in_a_row + 1
        if skipped.in_a_row >= self._limit:
            raise self.error()


def _fault(epoch: int, step: int, images: float, loss: float, bad: Sequence[str]) -> _Fault:
    """Of a step that was left out. `images`: their sum. `bad`: parameters with a gradient that is not, in the model's order."""
    if not math.isfinite(images):
        return _Fault(epoch, step, "images", "an image is not finite")
    if not math.isfinite(loss):
        return _Fault(epoch, step, "loss", f"train/loss is {loss}")
    # the last is nearest to the loss: it was met first
    others = f" (and those of {len(bad) - 1} others)" if len(bad) > 1 else ""
    return _Fault(epoch, step, "gradient", f"the gradient of {bad[-1]} is not finite{others}")


def _finite(gradients: Sequence[Tensor]) -> bool:
    """Waits for the device. A sum reads each number once; that it may overflow by itself is looked into where it does."""
    small = [grad.reshape(-1) for grad in gradients if grad.numel() < _SMALL]
    together = [torch.cat(small)] if small else []
    sums = (grad.sum().item() for grad in (*together, *(grad for grad in gradients if grad.numel() >= _SMALL)))
    return math.isfinite(sum(sums)) or all(bool(grad.isfinite().all()) for grad in gradients)


class _Kept:
    """A copy of tensors on one device, to put it back."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        self._groups = [(alike, *_like(alike)) for alike in by_dtype.values()]

    def take(self) -> None:
        for tensors, _, copies in self._groups:
            torch._foreach_copy_(copies, tensors)

    def put_back(self) -> None:
        for tensors, _, copies in self._groups:
            torch._foreach_copy_(tensors, copies)

    def select(self, kept: Tensor) -> None:
        """Put it back where `kept`, bool [], is false."""
        for tensors, before, _ in self._groups:
            now, parts = _like(tensors)
            torch._foreach_copy_(parts, tensors)
            torch.where(kept, now, before, out=now)
            torch._foreach_copy_(tensors, parts)


def _like(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Memory for all of them, flat, and as they are shaped."""
    flat = tensors[0].new_empty(sum(tensor.numel() for tensor in tensors))
    return flat, [part.view(x.shape) for part, x in zip(flat.split([x.numel() for x in tensors]), tensors, strict=True)]


@dataclass(frozen=True)
class _Row:
    """A step; in `numbers` the images' sum, the loss, and the largest absolute value of each gradient."""

    epoch: int
    step: int
    names: list[str]
    numbers: Tensor


class _Fetched:
    """Rows on their way to the host."""

    def __init__(self, rows: list[_Row]) -> None:
        self._rows = rows
        self._numbers = torch.cat([row.numbers for row in rows])
        self._done: torch.cuda.Event | None = None
        if self._numbers.is_cuda:
            host = torch.empty_like(self._numbers, device="cpu", pin_memory=True)
            self._numbers = host.copy_(self._numbers, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()

    def rows(self) -> list[tuple[_Row, list[float]]]:
        """Each with its numbers. Waits for them."""
        if self._done is not None:
            self._done.synchronize()
        parts = self._numbers.split([len(row.numbers) for row in self._rows])
        return [(row, part.tolist()) for row, part in zip(self._rows, parts, strict=True)]
