"""Microseconds of one step of generation, for every mixer that has a recurrent view.

    python benchmarks/steps.py [--mixers S4D Hyena] [--contexts 1000 8192] [--batch-size 1] [--output FILE]

Each mixer has its default options and reads a context of random numbers; then the steps that follow are taken several
times over from the same state, under `torch.inference_mode` and with the weights promised constant, as in generation.
There are as many of them as there are positions between two merges of an online convolution, so that what happens now
and then has its share in the mean.  The median of the repetitions is given, in processor time on one thread.
`weights` are the bytes of parameters that a step reads, which nothing can do without reading.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from longreach.bench.mixer_costs import build_mixer, mixer_names
from longreach.errors import InputError
from longreach.mixers import SequenceMixer
from longreach.mixers.base import State
from longreach.mixers.constant_weights import Kept, constant_weights
from longreach.ops.online_conv import BASE

WIDTH = 256
CHUNK = 1024
"""Positions of the context that are read at a time."""


def read(mixer: SequenceMixer, context: int, batch_size: int) -> State:
    """The state after a context; raises InputError where there is no recurrent view."""
    state = mixer.init_state(batch_size)
    for start in range(0, context, CHUNK):
        _, state = mixer.prefill(torch.randn(batch_size, min(CHUNK, context - start), WIDTH), state)
    return state


def microseconds_of_a_step(mixer: SequenceMixer, state: State, batch_size: int, repeats: int) -> float:
    """The median, over the repetitions, of the mean over the steps."""
    kept: Kept = {}
    inputs = torch.randn(BASE, batch_size, WIDTH).unbind()
    seconds = []
    with constant_weights(kept):
        for _ in range(1 + repeats):
            current, start = state, time.process_time()
            for x in inputs:
                _, current = mixer.step(x, current)
            seconds.append(time.process_time() - start)
    return 1e6 * statistics.median(seconds[1:]) / BASE


@torch.inference_mode()
def measure(name: str, contexts: list[int], batch_size: int, repeats: int) -> dict[str, str | float] | None:
    """One row of the table, or None where a mixer has no recurrent view."""
    torch.manual_seed(0)
    mixer = build_mixer(name, WIDTH, max(contexts) + BASE).eval()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in mixer.parameters())
    row: dict[str, str | float] = {"mixer": name, "weights": weights}
    for context in contexts:
        try:
            state = read(mixer, context, batch_size)
        except InputError:
            return None
        row[str(context)] = round(microseconds_of_a_step(mixer, state, batch_size, repeats), 1)
    return row


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixers", nargs="+", choices=mixer_names(), default=mixer_names())
    parser.add_argument("--contexts", nargs="+", type=int, default=[1000, 8192])
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, help="where to write the rows as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'mixer':<20}{'weights/KiB':>12}", *(f"{context:>10,}" for context in options.contexts))
    rows = []
    for name in options.mixers:
        row = measure(name, options.contexts, options.batch_size, options.repeats)
        if row is not None:
            rows.append(row)
            times = (f"{row[str(context)]:>10}" for context in options.contexts)
            print(f"{name:<20}{float(row['weights']) / 1024:>12,.0f}", *times, flush=True)
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
