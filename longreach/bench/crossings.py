"""From which length on a mixer takes less time than attention, by the times that were measured."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from longreach.bench.mixer_costs import MixerCost

REFERENCE = "Attention"


class Crossing(NamedTuple):
    """Where one mixer becomes faster than attention."""

    mixer: str
    length: float | None
    """From here on it is; None if it is not at the longest length that both were measured at."""
    everywhere: bool
    """It is at every length that was measured, so `length` is only the shortest of them."""


def crossings(costs: Sequence[MixerCost], field: str = "training_seconds") -> list[Crossing]:
    """Of every mixer but attention itself; those that share no length with it are left out.

    Between two lengths both times are taken as powers of the length: straight lines where both axes are logarithmic.
    """
    seconds: dict[str, dict[int, float]] = {}
    for cost in costs:
        if (value := getattr(cost, field)) is not None:
            seconds.setdefault(cost.mixer, {})[cost.length] = value
    reference = seconds.pop(REFERENCE, {})
    found = []
    for mixer, times in seconds.items():
        excess = [(n, math.log(times[n] / reference[n])) for n in sorted(times.keys() & reference.keys())]
        if excess:
            found.append(_crossing(mixer, excess))
    return found


def _crossing(mixer: str, excess: list[tuple[int, float]]) -> Crossing:
    """From the logarithms of (time / time of attention) by length."""
    slower = [i for i, (_, value) in enumerate(excess) if value >= 0]
    if not slower:
        return Crossing(mixer, float(excess[0][0]), everywhere=True)
    if slower[-1] == len(excess) - 1:
        return Crossing(mixer, None, everywhere=False)
    (short, above), (long, below) = excess[slower[-1]], excess[slower[-1] + 1]
    return Crossing(mixer, short * (long / short) ** (above / (above - below)), everywhere=False)
