"""How long a call takes on a GPU, with its caches cold and what Python needs for launching hidden.

Before every round more memory is written than any second-level cache holds, as often as it takes for the processor to
have queued the whole call meanwhile.  Two events on the GPU then enclose nothing but its own work.
"""

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from longreach.bench.memory import peak_bytes
from longreach.bench.timing import median_seconds

Run = Callable[[], object]
CLEARED = 1 << 28
"""Bytes that are written before each round; the largest second-level caches have about 2^27."""
CLEARING = CLEARED / 4e12
"""Seconds that this takes at least: memories write less than 4 TB/s."""
MOST_CLEARINGS = 1000
LEAST_ROUNDS, MOST_ROUNDS, ENOUGH = 3, 40, 0.15
"""Rounds of one measurement, and the seconds of work that are enough."""
LONG_RUN = 2.0
"""A call of so many seconds is not repeated."""


def event_seconds(run: Run) -> float:
    """The median of several rounds on the current GPU.  The caller has run it once before."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    launching = time.perf_counter() - began
    torch.cuda.synchronize()
    taken = time.perf_counter() - began
    if taken > LONG_RUN:
        return taken
    cleared = torch.empty(CLEARED, dtype=torch.int8, device="cuda")
    clearings = min(MOST_CLEARINGS, 1 + math.ceil(launching / CLEARING))
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, math.ceil(ENOUGH / taken)))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for start, end in events:
        for _ in range(clearings):
            cleared.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3


Clock = Callable[[Run], float]
"""Seconds of a call that was made once before."""


class Meter(NamedTuple):
    """What measures, and where."""

    device: str = "cuda"
    device_clock: Clock = event_seconds
    """What the device needs for a call ..."""
    wall_clock: Clock = partial(median_seconds, device="cuda")
    """... and what whoever waits for it does, launching included."""

    def bytes(self, run: Run) -> float:
        """Needed at once beyond what there is; NaN where nobody knows."""
        peak = peak_bytes(run, self.device)
        return math.nan if peak is None else float(peak)
