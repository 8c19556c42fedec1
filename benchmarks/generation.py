"""Tokens per second of generation: models of 4 layers and width 256 that read bytes, on one thread, in float32.

    python benchmarks/generation.py [--models hyena s4d] [--output benchmarks/results/generation.json]

Each model reads a context of random bytes and then writes 128, the most likely ones, as `longreach.inference` does it:
under `torch.inference_mode` and with the weights promised constant.  The same state is continued several times; the
median counts, in processor time.  Against it stands what a model without a recurrent view has to do, to run the whole
context through `forward` for every byte.  Weights are as they start: what they are does not change the work.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from longreach.inference.eval_mode import eval_mode
from longreach.mixers import H3, RWKV4, S4D, Attention, Hyena, SequenceMixer
from longreach.mixers.base import State, map_state
from longreach.mixers.constant_weights import Kept, constant_weights
from longreach.models import MLP, Backbone, LanguageModel

VOCABULARY, WIDTH, LAYERS = 256, 256, 4
WRITTEN, CHUNK, ROUNDS = 128, 4096, 3
LONGEST = 1 << 16
MIXERS: dict[str, Callable[[int], SequenceMixer]] = {
    "hyena": partial(Hyena, max_length=LONGEST),
    "s4d": S4D,
    "h3": H3,
    "rwkv4": RWKV4,
    "attention": Attention,
}
SETTINGS = [(1, 1024), (1, 8192), (1, 32_768), (16, 8192)]
"""Batch and context."""
AGAIN = 8192
"""The context that is run through `forward` for one more byte."""


def make_model(name: str) -> LanguageModel:
    """The model of that name, newly initialised."""
    torch.manual_seed(0)
    return LanguageModel(VOCABULARY, Backbone(WIDTH, n_layers=LAYERS, mixers=[MIXERS[name]], channel_mixer=MLP))


def read(model: LanguageModel, batch: int, context: int) -> tuple[Tensor, State]:
    """The logits and the state after a context, which is read once and is the same in all rows of the batch."""
    logits, state = torch.empty(0), model.init_state(1)
    for chunk in torch.randint(VOCABULARY, (1, context)).split(CHUNK, dim=1):
        logits, state = model.read(chunk, state)
    if batch == 1:
        return logits, state
    return logits.repeat(batch, 1), map_state(lambda leaf: leaf.repeat(batch, *[1] * (leaf.ndim - 1)), state)


def write(model: LanguageModel, logits: Tensor, state: State) -> float:
    """Seconds of a written position."""
    start = time.process_time()
    for _ in range(WRITTEN):
        logits, state = model.step(logits.argmax(-1), state)
    return (time.process_time() - start) / WRITTEN


def measure(name: str, batch: int, context: int) -> dict[str, str | float]:
    """One row of the table."""
    model, kept = make_model(name), Kept()
    with eval_mode(model), constant_weights(kept):
        start = time.process_time()
        logits, state = read(model, batch, context)
        reading = time.process_time() - start
        first, *others = (write(model, logits, state) for _ in range(1 + ROUNDS))
    seconds = statistics.median(others)
    return {
        "model": name,
        "batch": batch,
        "context": context,
        "milliseconds_per_position": round(1e3 * seconds, 3),
        "milliseconds_with_first_use": round(1e3 * first, 3),
        "tokens_per_second": round(batch / seconds),
        "read_tokens_per_second": round(context / reading),
    }


def run_again(name: str) -> float:
    """Seconds of one more byte by running the context through `forward`."""
    model, tokens = make_model(name), torch.randint(VOCABULARY, (1, AGAIN))
    seconds = []
    with eval_mode(model), constant_weights(Kept()):
        for _ in range(1 + ROUNDS):
            start = time.process_time()
            model(tokens)
            seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MIXERS), default=list(MIXERS))
    parser.add_argument("--output", type=Path, help="where to write the results as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list] = {"generation": [], "running_again": []}
    for name in options.models:
        for batch, context in SETTINGS:
            found["generation"].append(measure(name, batch, context))
            print(json.dumps(found["generation"][-1]), flush=True)
        seconds = run_again(name)
        step = next(
            row for row in found["generation"][-len(SETTINGS) :] if (row["batch"], row["context"]) == (1, AGAIN)
        )
        ratio = 1e3 * seconds / step["milliseconds_per_position"]
        again = {"model": name, "context": AGAIN, "milliseconds": round(1e3 * seconds, 1), "times_a_step": round(ratio)}
        found["running_again"].append(again)
        print(json.dumps(again), flush=True)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
