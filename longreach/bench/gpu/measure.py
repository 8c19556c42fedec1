"""Going through the cells in a process of its own, within a time, the most important first.

What breaks there, a kernel that reads where it must not for one, ends that process; the next one goes on with the next
cell.  A cell that is not measured says why.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from longreach.bench.gpu.attention import SECTION as ATTENTION
from longreach.bench.gpu.attention import attention_cells
from longreach.bench.gpu.cells import Cell, Result
from longreach.bench.gpu.clock import Meter
from longreach.bench.gpu.device import device_cells
from longreach.bench.gpu.long_conv import SECTION as CONVOLUTION
from longreach.bench.gpu.long_conv import convolution_cells
from longreach.bench.gpu.models import GENERATION, TRAINING, generation_cells, training_cells
from longreach.bench.gpu.operators import SECTION as OPERATORS
from longreach.bench.gpu.operators import operator_cells
from longreach.bench.gpu.sizes import Sizes
from longreach.bench.own_process import own_process
from longreach.errors import InputError
from longreach.ops.triton import available

SECTIONS: dict[str, Callable[[Sizes], list[Cell]]] = {
    ATTENTION: attention_cells,
    CONVOLUTION: convolution_cells,
    TRAINING: training_cells,
    GENERATION: generation_cells,
    OPERATORS: operator_cells,
}
LONGEST_RUN = 4.0
"""Seconds; a cell whose single run would take longer is left empty."""
STEEPEST = 2.0
"""Times grow with no higher power of the length; where they seem to, something else was measured too."""
RUNS = 6
"""About how often a cell runs what it measures."""
SILENCE = 120.0
"""Seconds after which a process is given up: most of them may go into compiling."""
NO_TIME, NO_MEMORY = "no time was left", "out of memory"
BROKEN = ("CUDA error", "Triton Error [CUDA]")
"""How messages begin after which a process cannot use its GPU any more."""


class Plan(NamedTuple):
    """What to measure, with what, and until when."""

    sections: tuple[str, ...]
    sizes: Sizes
    meter: Meter
    deadline: float
    """By the clock of `time.time`, which all processes share."""

    def cells(self) -> list[Cell]:
        """In the order in which they are measured."""
        found = device_cells(self.sizes)
        for name in self.sections:
            found += SECTIONS[name](self.sizes)
        return sorted(found, key=lambda cell: cell.rank)


def check_sections(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once, in the order of the report.  Raises InputError for one that there is not."""
    if unknown := [name for name in names if name not in SECTIONS]:
        raise InputError(f"there is no section {unknown[0]!r}; the sections are {', '.join(SECTIONS)}")
    return tuple(name for name in SECTIONS if name in names)


def measure_apart(plan: Plan) -> Iterator[Result]:
    """A result for every cell of the plan, as they are found, measured in processes of their own."""
    cells, found = plan.cells(), list[Result]()
    while len(found) < len(cells):
        with own_process(_work, plan, found) as receive:
            while len(found) < len(cells):
                answer = receive(SILENCE)
                result = empty(cells[len(found)], answer) if isinstance(answer, str) else answer
                found.append(result)
                yield result
                if isinstance(answer, str) or result.note.startswith(BROKEN):
                    break


def _work(plan: Plan, found: list[Result], answers: Connection) -> None:
    """Measure what is still missing; runs in a process of its own, which its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for result in measure_here(plan, found):
        answers.send(result)
        if result.note.startswith(BROKEN):
            return


def measure_here(plan: Plan, found: Sequence[Result] = ()) -> Iterator[Result]:
    """Results for the cells behind those that were `found`, measured in this process."""
    known = list(found)
    for cell in plan.cells()[len(known) :]:
        note = reason_to_skip(cell, known, plan.deadline - time.time())
        result = empty(cell, note) if note else _measure(cell, plan.meter)
        known.append(result)
        yield result


def empty(cell: Cell, note: str) -> Result:
    """A cell that was not measured."""
    return Result(cell.section, cell.case, cell.side, cell.length, {}, note)


def _measure(cell: Cell, meter: Meter) -> Result:
    try:
        numbers = cell.measure(meter)
    except (torch.OutOfMemoryError, MemoryError):
        return empty(cell, NO_MEMORY)
    except (InputError, RuntimeError, *_triton_errors()) as error:
        return empty(cell, str(error).strip().partition("\n")[0] or type(error).__name__)
    finally:
        if meter.device == "cuda":
            torch.cuda.empty_cache()
    return Result(cell.section, cell.case, cell.side, cell.length, numbers)


def _triton_errors() -> tuple[type[Exception], ...]:
    """What Triton raises when it cannot compile or launch."""
    if available.MISSING is not None:
        return ()
    from triton.errors import TritonError

    return (TritonError,)


def reason_to_skip(cell: Cell, known: Sequence[Result], seconds_left: float) -> str:
    """Why a cell need not be tried, by what the same side did at shorter lengths; empty if it should be."""
    series = [r for r in known if (r.section, r.case, r.side) == (cell.section, cell.case, cell.side)]
    shorter = sorted((r for r in series if r.length < cell.length), key=lambda r: r.length)
    full = next((r for r in shorter if r.note.startswith(NO_MEMORY)), None)
    if full is not None:
        return f"{NO_MEMORY} at {full.length:,} already"
    expected = _expected_seconds([(r.length, _longest_run(r)) for r in shorter if r.numbers], cell.length)
    if expected > LONGEST_RUN:
        return f"would take about {expected:.0f} s"
    return NO_TIME if seconds_left < RUNS * expected else ""


def _longest_run(result: Result) -> float:
    return sum(value for name, value in result.numbers.items() if name.endswith("seconds"))


def _expected_seconds(points: list[tuple[int, float]], length: int) -> float:
    """At `length`, growing as between the last two points, or with the length where there is one."""
    if not points:
        return 0.0
    last, seconds = points[-1]
    power = 1.0
    if len(points) > 1 and points[-2][1] > 0 and seconds > 0:
        before, earlier = points[-2]
        power = min(STEEPEST, max(0.0, math.log(seconds / earlier) / math.log(last / before)))
    return seconds * (length / last) ** power
