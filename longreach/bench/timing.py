"""How long a call takes."""

import statistics
import time
from collections.abc import Callable

import torch

LEAST_RUNS, MOST_RUNS, ENOUGH_SECONDS = 3, 20, 0.5
LONG_RUN = 5.0
"""A run of this many seconds is not repeated."""


def median_seconds(run: Callable[[], object], device: str) -> float:
    """The median of several runs; the caller has run it once before."""
    seconds: list[float] = []
    while len(seconds) < LEAST_RUNS or (sum(seconds) < ENOUGH_SECONDS and len(seconds) < MOST_RUNS):
        began = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        if seconds[-1] > LONG_RUN:
            break
    return statistics.median(seconds)
