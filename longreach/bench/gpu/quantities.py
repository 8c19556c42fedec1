"""What is shown of every section: quantities made from the numbers of a cell, some beside a peak or beside others."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from longreach.bench.gpu.attention import BACKWARD, FUSED, MASKED
from longreach.bench.gpu.attention import SECTION as ATTENTION
from longreach.bench.gpu.cells import Numbers
from longreach.bench.gpu.device import SECTION as DEVICE
from longreach.bench.gpu.long_conv import FFT, PUBLISHED
from longreach.bench.gpu.long_conv import SECTION as CONVOLUTION
from longreach.bench.gpu.models import GENERATION, TRAINING
from longreach.bench.gpu.operators import SECTION as OPERATORS
from longreach.bench.gpu.sides import OUR_TORCH

MATRIX, MEMORY = "bfloat16", "bytes"
"""Peaks, by the names of the cells that measure them."""
FLASH = "FlashFFTConv, published"


class Quantity(NamedTuple):
    """A column of numbers, for tables and plots."""

    title: str
    of: Callable[[Numbers], float | None]
    whole: str = ""
    """The peak of which it is a share."""
    against: tuple[str, ...] = ()
    """Sides whose least value is divided by the one of each side, instead of showing that."""
    published: Mapping[int, float] | None = None
    """Values by others, by length."""
    plotted: bool = True


def share(above: str, below: str, factor: float) -> Callable[[Numbers], float | None]:
    """One number by another, scaled; None where either is missing."""

    def of(numbers: Numbers) -> float | None:
        if above not in numbers or not numbers.get(below):
            return None
        return factor * numbers[above] / numbers[below]

    return of


def amount(name: str, factor: float) -> Callable[[Numbers], float | None]:
    """A number, scaled."""
    return lambda numbers: factor * numbers[name] if name in numbers else None


def both_passes(numbers: Numbers) -> float | None:
    """Seconds of forward and backward together."""
    if "backward_seconds" not in numbers:
        return None
    return numbers["forward_seconds"] + numbers["backward_seconds"]


def fastest_writing(numbers: Numbers) -> float | None:
    """Tokens per second as generation makes them: replayed where steps can be recorded."""
    seconds = numbers.get("captured_seconds", numbers.get("eager_seconds"))
    return numbers["written"] / seconds if seconds else None


MEBIBYTES = Quantity("forward and backward, MiB", amount("training_bytes", 2**-20))
ERROR = Quantity("relative error of the result", amount("error", 1.0), plotted=False)
TIMES = [
    Quantity("forward, milliseconds", amount("forward_seconds", 1e3)),
    Quantity("backward, milliseconds", amount("backward_seconds", 1e3)),
]
MOVED = [
    Quantity("forward, GB/s of what must be moved", share("forward_moved", "forward_seconds", 1e-9), MEMORY),
    Quantity("backward, GB/s of what must be moved", share("backward_moved", "backward_seconds", 1e-9), MEMORY),
]
FORWARD = amount("forward_seconds", 1.0)

QUANTITIES: dict[str, list[Quantity]] = {
    DEVICE: [
        Quantity("TFLOP/s", share("forward_operations", "forward_seconds", 1e-12)),
        Quantity("GB/s", share("forward_moved", "forward_seconds", 1e-9)),
    ],
    ATTENTION: [
        Quantity("forward, TFLOP/s", share("forward_operations", "forward_seconds", 1e-12), MATRIX),
        Quantity("backward, TFLOP/s", share("forward_operations", "backward_seconds", BACKWARD * 1e-12), MATRIX),
        Quantity("forward, times as fast as torch's best", FORWARD, against=(*FUSED, MASKED), plotted=False),
        Quantity("both passes, times as fast as torch's best", both_passes, against=(*FUSED, MASKED), plotted=False),
        MEBIBYTES,
        ERROR,
    ],
    CONVOLUTION: [
        Quantity(f"forward, times as fast as {FFT}", FORWARD, against=(FFT,), published=PUBLISHED),
        Quantity(f"both passes, times as fast as {FFT}", both_passes, against=(FFT,)),
        *(quantity._replace(plotted=False) for quantity in TIMES),
        *MOVED[:1],
        MOVED[1]._replace(plotted=False),
        MEBIBYTES,
        ERROR,
    ],
    TRAINING: [
        Quantity("tokens per second", share("tokens", "training_seconds", 1.0)),
        Quantity("peak memory, MiB", amount("training_bytes", 2**-20)),
    ],
    GENERATION: [
        Quantity("tokens per second", fastest_writing),
        Quantity("tokens per second, step by step", share("written", "eager_seconds", 1.0), plotted=False),
        Quantity("state, MiB", amount("state_bytes", 2**-20)),
    ],
    OPERATORS: [
        *TIMES,
        *(quantity._replace(plotted=False) for quantity in MOVED),
        Quantity("both passes, times as fast as in torch", both_passes, against=(OUR_TORCH,), plotted=False),
        MEBIBYTES._replace(plotted=False),
        ERROR,
    ],
}
"""Section -> what is shown of it."""
