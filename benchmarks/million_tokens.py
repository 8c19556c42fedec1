"""A million tokens on one machine: peak memory and time of training, reading and writing, each in its own process.

python benchmarks/million_tokens.py [--length 1048576] [--models hyena s4d hybrid] [--tasks train carry generate]

The models have 6 layers of width 128 and read bytes.

    train     one step of AdamW (forward, backward, update) on one sequence
    carry     the same by truncated back-propagation: pieces of 16,384 tokens, the state carried from each to the next
    generate  reads a prompt in chunks and writes 1,000 tokens more; says also how far the views differ on 8,192 tokens

Memory is the largest resident set of the process (VmHWM), the interpreter and torch included; it is exact.  Times are
those of one run, wall clock and processor, which with one thread differ only by what else the machine does.
"""

import argparse
import json
import multiprocessing
import re
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

from longreach.inference import GenerationOptions, TokenStream
from longreach.mixers import S4D, Attention, Hyena, map_state
from longreach.models import GLU, MLP, Backbone, LanguageModel

VOCABULARY, WIDTH, LAYERS, WRITTEN = 257, 128, 6, 1000
MODELS = ("hyena", "s4d", "hybrid")
TRUNCATION = 16_384
TASKS = ("train", "carry", "generate")


def build(name: str, length: int, *, recompute: bool) -> LanguageModel:
    """A language model whose filters reach over `length` positions."""
    hyena, attention = partial(Hyena, max_length=length), partial(Attention, n_heads=2, window=512)
    mixers = {"hyena": [hyena], "s4d": [S4D], "hybrid": [hyena, hyena, attention]}[name]
    backbone = Backbone(
        WIDTH,
        n_layers=LAYERS,
        mixers=mixers,
        channel_mixer=GLU if name == "s4d" else MLP,
        layout="joint" if name == "s4d" else "split",
        recompute=recompute,
    )
    return LanguageModel(VOCABULARY, backbone)


def peak_bytes() -> int:
    """The largest resident set that this process has had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def train(name: str, options: argparse.Namespace, *, truncation: int | None = None) -> dict[str, float]:
    """One step of training on one sequence, at once or in pieces."""
    model = build(name, options.length, recompute=options.recompute)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = torch.randint(256, (1, options.length + 1))
    before, began, processor = peak_bytes(), time.perf_counter(), time.process_time()
    total, state = 0.0, model.init_state(1)
    size = truncation or options.length
    for inputs, targets in zip(tokens[:, :-1].split(size, dim=1), tokens[:, 1:].split(size, dim=1), strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
            if truncation is None:
                losses = model.token_losses(inputs, targets)
            else:
                losses, state = model.score(inputs, targets, state)
                state = map_state(torch.Tensor.detach, state)
            loss = losses.sum() / options.length
        loss.backward()
        total += loss.item()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return {
        "loss": total,
        "gradient_norm": float(norm),
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - processor,
        "peak_bytes": peak_bytes(),
        "bytes_before": before,
    }


def carry(name: str, options: argparse.Namespace) -> dict[str, float]:
    """The same in pieces."""
    return train(name, options, truncation=TRUNCATION)


def disagreement(model: LanguageModel, length: int) -> float:
    """The largest difference between logits of all views, in chunks and steps and at once, by the largest logit."""
    tokens, n_steps = torch.randint(256, (1, length)), 16
    with torch.inference_mode():
        expected = model(tokens)
        state, found = model.init_state(1), []
        for chunk in tokens[:, :-n_steps].split(1000, dim=1):
            logits, state = model.prefill(chunk, state)
            found.append(logits)
        for token in tokens[:, -n_steps:].unbind(1):
            logits, state = model.step(token, state)
            found.append(logits[:, None])
        return float((torch.cat(found, dim=1) - expected).abs().max() / expected.abs().max())


def generate(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Read a prompt of the whole length, then write."""
    model = build(name, options.length + WRITTEN, recompute=False).eval()
    prompt = torch.randint(256, (options.length,)).tolist()
    began, processor = time.perf_counter(), time.process_time()
    stream = TokenStream(model, [prompt], GenerationOptions(max_new_tokens=WRITTEN))
    stream.advance()
    read, read_processor, peak_read = time.perf_counter(), time.process_time(), peak_bytes()
    for _ in range(WRITTEN - 1):
        stream.advance()
    return {
        "seconds_reading": read - began,
        "processor_seconds_reading": read_processor - processor,
        "milliseconds_per_token": 1000 * (time.perf_counter() - read) / (WRITTEN - 1),
        "processor_milliseconds_per_token": 1000 * (time.process_time() - read_processor) / (WRITTEN - 1),
        "peak_bytes_reading": peak_read,
        "peak_bytes": peak_bytes(),
        "disagreement": disagreement(model, min(8192, options.length)),
    }


def measure(task: str, name: str, options: argparse.Namespace, results: multiprocessing.SimpleQueue) -> None:
    """What a child process does."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    results.put({"train": train, "carry": carry, "generate": generate}[task](name, options))


def main() -> None:
    """Measure all that was asked for, one process after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=2**20)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true", help="dense products under autocast")
    parser.add_argument("--recompute", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    context, rows = multiprocessing.get_context("spawn"), []
    for task in options.tasks:
        for name in options.models:
            results = context.SimpleQueue()
            process = context.Process(target=measure, args=(task, name, options, results))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{task} {name} ended with status {process.exitcode}")
            rows.append({"task": task, "model": name, "length": options.length, **results.get()})
            print(json.dumps(rows[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
