"""Tokens per second of training: language models on our kernels and on torch alone, in one process and in turn.

    python benchmarks/training_speed.py [--threads 2] [--precision bfloat16] [--models s4d hyena attention]

`s4d` is the model of the published example (S4D, GELU, gated linear map; 64 states), `hyena` a block of the published
language model (filters of width 64, MLP of four times the width), `attention` the same with attention of 2 heads and
rotary positions in the place of Hyena; all have 4 layers of width 128 and read bytes.
A step is forward, backward and AdamW.  With one thread the time is that of the processor, with more that of the clock.
Prints one JSON line a model.
"""

import argparse
import contextlib
import json
import statistics
import time
from functools import partial

import torch

from longreach.bench import on_torch
from longreach.mixers import S4D, Attention, Hyena
from longreach.models import GLU, MLP, Backbone, LanguageModel
from longreach.training.optimiser import make_optimiser
from longreach.training.options import TrainingOptions

VOCABULARY, WIDTH, LAYERS = 256, 128, 4
SIZES = {"s4d": (8, 2048), "hyena": (2, 8192), "attention": (2, 8192)}
"""Batch and length."""


def make_model(name: str) -> LanguageModel:
    """The model of that name, newly initialised."""
    if name == "s4d":
        backbone = Backbone(WIDTH, n_layers=LAYERS, mixers=[S4D], channel_mixer=GLU, layout="joint")
    else:
        hyena, attention = partial(Hyena, max_length=SIZES[name][1]), partial(Attention, n_heads=2)
        mixer = hyena if name == "hyena" else attention
        backbone = Backbone(
            WIDTH, n_layers=LAYERS, mixers=[mixer], channel_mixer=lambda width: MLP(width, activation="gelu_tanh")
        )
    return LanguageModel(VOCABULARY, backbone)


def measure(name: str, threads: int, precision: str, rounds: int) -> dict[str, float | str]:
    """The median tokens per second on both sides, without the first round."""
    torch.manual_seed(0)
    model, (batch, length) = make_model(name), SIZES[name]
    optimiser = make_optimiser(model, TrainingOptions(steps=rounds))
    tokens = torch.randint(VOCABULARY, (batch, length + 1))
    clock = time.process_time if threads == 1 else time.perf_counter
    found: dict[str, list[float]] = {"ours": [], "torch": []}
    for _ in range(1 + rounds):
        for side, speeds in found.items():
            with contextlib.nullcontext() if side == "ours" else on_torch():
                start = clock()
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                    loss = model.token_losses(tokens[:, :-1], tokens[:, 1:]).mean()
                loss.backward()
                optimiser.step()
                optimiser.zero_grad()
                speeds.append(batch * length / (clock() - start))
    medians = {side: round(statistics.median(speeds[1:])) for side, speeds in found.items()}
    return {"model": name, "threads": threads, "precision": precision, **medians}


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.models:
        print(json.dumps(measure(name, options.threads, options.precision, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
