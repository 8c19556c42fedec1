"""The unit of measuring: a cell of a table, what it found, and contests between several ways to do the same.

Axes: none; tensors are what the contests bring.
"""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longreach.bench.gpu.clock import Meter

Numbers = dict[str, float]
"""What a cell found, by name: seconds, bytes, operations, relative errors."""


class Cell(NamedTuple):
    """One measurement, not yet made."""

    section: str
    case: str
    side: str
    """Who does it."""
    length: int
    rank: int
    """Cells of a lower rank are measured before any of a higher one."""
    measure: Callable[[Meter], Numbers]


class Result(NamedTuple):
    """What a cell found, or why it is empty."""

    section: str
    case: str
    side: str
    length: int
    numbers: Numbers
    note: str = ""


class Contest(NamedTuple):
    """Several functions of the same tensors, compared at several lengths."""

    section: str
    case: str
    lengths: Sequence[int]
    inputs: Callable[[int, str], list[Any]]
    """The tensors of a length, on a device; gradients are those of the ones that require them."""
    sides: Mapping[str, Callable[..., Tensor]]
    exact: Callable[..., Tensor]
    """Judges the results, on inputs widened to float32."""
    operations: Callable[[list[Any]], float] | None = None
    """Of the forward pass, where operations are what bounds it."""
    main: Collection[int] = ()
    """Lengths that are measured first ..."""
    minor: Collection[str] = ()
    """... and sides that are measured last."""
    judged: int = 1 << 62
    """The longest length at which results are judged."""

    def cells(self, rank: int) -> list[Cell]:
        """A cell for each length and side; `rank` is that of the main ones."""
        return [
            Cell(
                *(self.section, self.case, side, length),
                rank + (length not in self.main) + 2 * (side in self.minor),
                partial(_measure, self, side, length),
            )
            for length in self.lengths
            for side in self.sides
        ]


def _measure(contest: Contest, side: str, length: int, meter: Meter) -> Numbers:
    """Forward and, where there are gradients, backward: time, memory, and the least that has to be moved."""
    torch.manual_seed(length)
    inputs, function = contest.inputs(length, meter.device), contest.sides[side]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells so why it has no kernel, and then raises
        numbers = _forward(function, inputs, meter)
        if length <= contest.judged:
            numbers["error"] = _error(function, contest.exact, inputs)
        numbers |= _backward(function, inputs, meter)
    if contest.operations is not None:
        numbers["forward_operations"] = contest.operations(inputs)
    return numbers


@torch.no_grad()
def _forward(function: Callable[..., Tensor], inputs: list[Any], meter: Meter) -> Numbers:
    run = partial(function, *inputs)
    y = run()  # compiles, and plans
    moved = _bytes(inputs) + _bytes([y])
    del y
    return {"forward_bytes": meter.bytes(run), "forward_seconds": meter.device_clock(run), "forward_moved": moved}


def _backward(function: Callable[..., Tensor], inputs: list[Any], meter: Meter) -> Numbers:
    """The memory is that of both passes, the time that of the second one."""
    wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    if not wanted:
        return {}
    y = function(*inputs)
    cotangent = torch.randn_like(y)
    backward = partial(torch.autograd.grad, y, wanted, cotangent, retain_graph=True)
    backward()
    numbers = {"backward_seconds": meter.device_clock(backward)}
    numbers["backward_moved"] = _bytes(inputs) + _bytes([cotangent]) + _bytes(wanted)
    del y, backward
    return numbers | {
        "training_bytes": meter.bytes(lambda: torch.autograd.grad(function(*inputs), wanted, cotangent)),
    }


@torch.no_grad()
def _error(function: Callable[..., Tensor], exact: Callable[..., Tensor], inputs: list[Any]) -> float:
    expected = exact(*(_widened(x) for x in inputs))
    return float((function(*inputs).to(expected.dtype) - expected).norm() / expected.norm())


def _widened(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x


def _bytes(tensors: list[Any]) -> float:
    return float(sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor)))
