"""A training step of the Synthesizer with its synthetic scores held in full, and as products that never are.

    python benchmarks/synthesizer.py [--length 4096] [--batch-size 8] [--rounds 3] [--threads 1]

Both sides have the same weights, a factorised table beside dot products, and run in turn in one process under bfloat16
autocast.  Printed: the median seconds of each side, their ratio, and the largest difference of the outputs.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from longreach.mixers import Synthesizer, SynthesizerScores
from longreach.ops import attention

WIDTH, HEADS = 64, 4


def with_full_scores(mixer: Synthesizer, x: Tensor) -> Tensor:
    """What the mixer computes, with a table of (h, l, l) scores that is added to those of the dot products."""
    query, key, value = mixer.heads.split(x)
    length = x.shape[1]
    table = (mixer.rows[:, :length] @ mixer.columns[..., :length])[None]
    return mixer.heads.join(attention(query, key, value, bias=table))


def seconds_of_a_step(side: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Forward and backward."""
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        y = side(x)
    y.float().sum().backward()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("length", 4096), ("batch-size", 8), ("rounds", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    mixer = Synthesizer(
        WIDTH, max_length=chosen.length, n_heads=HEADS, scores=SynthesizerScores(dot_product=True), causal=False
    )
    x = torch.randn(chosen.batch_size, chosen.length, WIDTH)
    sides: dict[str, Callable[[Tensor], Tensor]] = {
        "scores in full": lambda x: with_full_scores(mixer, x),
        "products": mixer,
    }
    with torch.no_grad():
        first, second = (side(x[:1]) for side in sides.values())
        difference = (first - second).abs().max().item()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(chosen.rounds + 1):
        for name, side in sides.items():
            seconds[name].append(seconds_of_a_step(side, x))
    full, products = (statistics.median(found[1:]) for found in seconds.values())
    print(f"scores in full {full:.2f} s, products {products:.2f} s, ratio {full / products:.1f}")
    print(f"largest difference of the outputs in float32 {difference:.1e}")


if __name__ == "__main__":
    main()
