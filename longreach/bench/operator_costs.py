"""Time, memory and error of every operator beside what one would write in plain torch.

Both sides run in one process and in turn, round after round, so that what else the machine does meets both alike; a
ratio is the median over the rounds.  With one thread the time is that of the processor, with more that of the clock.
Errors are those of the outputs against the baseline in float64.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longreach.bench.memory import peak_bytes
from longreach.bench.operator_case import OperatorCase
from longreach.bench.operator_cases import operator_cases
from longreach.bench.own_process import own_process
from longreach.errors import InputError

LEAST_ROUNDS, MOST_ROUNDS = 3, 30
OURS = "ours"
TUNABLES = "GLIBC_TUNABLES"
"""What glibc looks at when a process starts."""
TUNED = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8589934592"
"""Keep what is freed."""
PATIENCE = 600.0
"""Seconds for one measurement in a process of its own."""


@dataclass(frozen=True)
class OperatorOptions:
    """How operators are measured.

    Attributes:
        threads: numbers of processor threads.
        seconds: for the rounds of one measurement; at least three are made.
        elements: numbers in the largest argument, about.
        quick: only the shortest length of each case, and one thread.
    """

    threads: Sequence[int] = (1, 2)
    seconds: float = 0.6
    elements: int = 1 << 22
    quick: bool = False


class OperatorCost(NamedTuple):
    """An operator beside one of its baselines, at one length and number of threads."""

    operator: str
    case: str
    length: int
    threads: int
    baseline: str
    numbers: int
    """In the largest argument or result."""
    forward: tuple[list[float], list[float]]
    """Seconds of every round: ours, and the baseline's."""
    training: tuple[list[float], list[float]] | None
    """The same for forward and backward together, where there is a gradient."""
    errors: tuple[float, float] | None
    """Relative, of the outputs: ours, and the baseline's."""
    bytes: tuple[int | None, int | None]
    """What is needed at once beyond the arguments, forward and backward: ours, and the baseline's."""


def ratios(seconds: tuple[list[float], list[float]]) -> list[float]:
    """How many times as long the baseline took, in every round."""
    return [theirs / ours for ours, theirs in zip(*seconds, strict=True)]


def select_cases(cases: Sequence[OperatorCase], names: Sequence[str], options: OperatorOptions) -> list[OperatorCase]:
    """The cases of the operators that are named, or all; with `quick` each at its shortest length.

    Raises InputError for an operator that is not measured, or options that make no sense.
    """
    known = list(dict.fromkeys(case.operator for case in cases))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"operator {unknown[0]!r} is not measured; those that are: {', '.join(known)}")
    if not options.threads or min(options.threads) < 1 or options.elements < 1:
        raise InputError(f"threads={list(options.threads)} and elements={options.elements} must be at least 1")
    chosen = [case for case in cases if not names or case.operator in names]
    return [case._replace(lengths=case.lengths[:1]) for case in chosen] if options.quick else chosen


def measure_operators(cases: Sequence[OperatorCase], options: OperatorOptions) -> Iterator[OperatorCost]:
    """The costs, as they are found; sets the number of threads, and puts it back in the end."""
    before = torch.get_num_threads()
    try:
        for case in cases:
            if case.tuned and TUNABLES not in os.environ:
                yield from _measure_tuned(case, options)
                continue
            for length in case.lengths:
                yield from _measure(case, length, options)
    finally:
        torch.set_num_threads(before)


def _measure_tuned(case: OperatorCase, options: OperatorOptions) -> Iterator[OperatorCost]:
    """The costs in a process whose allocator keeps what is freed, which has to be said before it starts."""
    with _environment(TUNABLES, TUNED), own_process(_answer, case.operator, case.name, case.lengths, options) as answer:
        while (cost := answer(PATIENCE)) is not None:
            if isinstance(cost, str):
                raise InputError(f"{case.operator}, {case.name}: {cost}; give fewer --elements")
            yield cost


def _answer(operator: str, name: str, lengths: tuple[int, ...], options: OperatorOptions, sender: Connection) -> None:
    """In that process: what is found, then None."""
    (case,) = (case for case in operator_cases() if (case.operator, case.name) == (operator, name))
    for length in lengths:
        for cost in _measure(case, length, options):
            sender.send(cost)
    sender.send(None)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Inside the block, and for processes that start there, a variable has this value; before, it had none."""
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def _measure(case: OperatorCase, length: int, options: OperatorOptions) -> Iterator[OperatorCost]:
    torch.manual_seed(0)
    inputs = case.inputs(length, options.elements)
    wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    sides = {OURS: case.ours, **case.baselines}
    errors = _errors(sides, inputs)
    with torch.no_grad():
        y = case.ours(*inputs)
    numbers = max(x.numel() for x in (y, *inputs) if isinstance(x, Tensor))
    cotangent = torch.randn_like(y)
    forward = {name: partial(_forward, side, inputs) for name, side in sides.items()}
    training = {name: partial(_train, side, inputs, wanted, cotangent) for name, side in sides.items() if wanted}
    torch.set_num_threads(1)
    peaks = {name: peak_bytes(run, "cpu") for name, run in (training or forward).items()}
    for threads in options.threads[:1] if options.quick else options.threads:
        torch.set_num_threads(threads)
        clock = time.process_time if threads == 1 else time.perf_counter
        seconds, both = _rounds(forward, clock, options.seconds), _rounds(training, clock, options.seconds)
        for name in case.baselines:
            yield OperatorCost(
                *(case.operator, case.name, length, threads, name, numbers),
                forward=(seconds[OURS], seconds[name]),
                training=(both[OURS], both[name]) if wanted else None,
                errors=(errors[OURS], errors[name]) if errors else None,
                bytes=(peaks[OURS], peaks[name]),
            )


def _forward(side: Callable[..., Tensor], inputs: list[Any]) -> None:
    with torch.no_grad():
        side(*inputs)


def _train(side: Callable[..., Tensor], inputs: list[Any], wanted: list[Tensor], cotangent: Tensor) -> None:
    torch.autograd.grad(side(*inputs), wanted, cotangent)


def _rounds(runs: dict[str, Callable[[], None]], clock: Callable[[], float], seconds: float) -> dict[str, list[float]]:
    """The time of every run in every round.  Memory has been measured before, so nothing is cold."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    began, rounds = time.perf_counter(), 0
    while runs and (rounds < LEAST_ROUNDS or (time.perf_counter() - began < seconds and rounds < MOST_ROUNDS)):
        for name, run in runs.items():
            start = clock()
            run()
            found[name].append(clock() - start)
        rounds += 1
    return found


@torch.no_grad()
def _errors(sides: dict[str, Callable[..., Tensor]], inputs: list[Any]) -> dict[str, float]:
    """The relative error of every side; nothing where the inputs are wide already, or hold more than numbers."""
    wide = [_widened(x) for x in inputs]
    if not all(isinstance(x, Tensor | int) for x in inputs) or all(a is b for a, b in zip(inputs, wide, strict=True)):
        return {}
    first_baseline = list(sides)[1]
    exact = sides[first_baseline](*wide)
    return {name: float((side(*inputs) - exact).norm() / exact.norm()) for name, side in sides.items()}


def _widened(x: Any) -> Any:
    if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
        return x
    return x.to(torch.complex128 if x.is_complex() else torch.float64)
