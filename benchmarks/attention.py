"""What attention costs for each pair of a query and a key that meet, relative to torch's fused causal attention.

    python benchmarks/attention.py [--lengths 1024 4096] [--kinds window packed] [--backends native tiled] [--backward]

Every kind of call is divided by the pairs that it needs, so 1.0 means: as fast as torch's fused kernel at what that can
do, and no work for what is masked.  Both sides take turns in one process; medians of processor time with one thread, of
the clock with more.  Prints one JSON line for each length, kind and backend.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longreach.ops import AttentionMask, attention

WIDTH, GROUP = 64, 4
"""Features of a head; query heads that share a key-value head in the grouped call."""
DOCUMENTS, WINDOWS = 8, 16
"""Documents that are packed into a row; a window is this part of the length."""
PAIRS = 2**25
"""Heads are added until a causal call has about so many pairs."""


class Call(NamedTuple):
    """Arguments of `attention`."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: AttentionMask
    options: dict[str, Any]

    def pairs(self) -> int:
        """Pairs that meet, in all heads."""
        l, m = self.query.shape[2], self.key.shape[2]
        rule = self.mask.located(l, m, self.query.device)
        rows = range(0, l, 1024)
        allowed = sum(int(rule.tile(slice(i, i + 1024), slice(None)).allowed().sum()) for i in rows)
        return allowed * self.query.shape[1]


def make_call(kind: str, length: int, dtype: torch.dtype) -> Call:
    """One row of `length` positions; every kind is causal but `full`."""
    heads = max(GROUP, PAIRS * 2 // length**2)

    def leaf(h: int, l: int, width: int) -> Tensor:
        return torch.randn(1, h, l, width, dtype=dtype).requires_grad_()

    document = torch.arange(length)[None] // -(-length // DOCUMENTS)
    real = torch.arange(length)[None] >= length // 10
    bias = 0.1 * torch.randn(1, 1, length, length) if kind in ("bias", "trained bias") else torch.zeros(())
    bias.requires_grad_(kind == "trained bias")
    masks = {
        "full": AttentionMask(),
        "window": AttentionMask(True, max(1, length // WINDOWS)),
        "packed": AttentionMask(True, query_segment=document, key_segment=document),
        "padding": AttentionMask(True, key_mask=real),
    }
    options: dict[str, dict[str, Any]] = {
        "soft cap": {"softcap": 30.0},
        "ALiBi": {"alibi_slopes": 2.0 ** -torch.arange(1, heads + 1)},
        "bias": {"bias": bias},
        "trained bias": {"bias": bias},
        "dropout": {"dropout": 0.1, "dropout_seed": torch.tensor(7)},
    }
    return Call(
        leaf(heads, length // (4 if kind == "fewer queries" else 1), WIDTH),
        leaf(heads // GROUP if kind == "grouped heads" else heads, length, WIDTH),
        leaf(
            heads // GROUP if kind == "grouped heads" else heads, length, 2 * WIDTH if kind == "wide values" else WIDTH
        ),
        masks.get(kind, AttentionMask(causal=True)),
        options.get(kind, {}),
    )


KINDS = [
    "causal", "full", "window", "packed", "padding", "fewer queries", "grouped heads", "wide values",
    "soft cap", "ALiBi", "bias", "trained bias", "dropout",
]  # fmt: skip


def timed(function: Callable[[], Tensor], inputs: list[Tensor], backward: bool, clock: Callable[[], float]) -> float:
    """Seconds of one call."""
    with torch.set_grad_enabled(backward):
        start = clock()
        y = function()
        if backward:
            torch.autograd.grad(y, inputs, torch.ones_like(y))
    return clock() - start


def measure(kind: str, options: argparse.Namespace, length: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """One row for each backend that can do the call."""
    clock = time.process_time if options.threads == 1 else time.perf_counter
    causal, call = make_call("causal", length, dtype), make_call(kind, length, dtype)
    run: dict[str, Callable[[], Tensor]] = {
        name: lambda name=name: attention.backends[name](*call[:4], **call.options)
        for name in options.backends
        if attention.refusal(name, *call[:4], **call.options) is None
    }
    sdpa = functools.partial(scaled_dot_product_attention, *causal[:3], is_causal=True)
    wanted = [x for x in (*call[:3], *call.options.values()) if isinstance(x, Tensor) and x.requires_grad]
    baseline: list[float] = []
    found: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(options.rounds + 1):
        baseline.append(timed(sdpa, list(causal[:3]), options.backward, clock))
        for name, function in run.items():
            found[name].append(timed(function, wanted, options.backward, clock))
    unit = statistics.median(baseline[1:]) / causal.pairs()
    rows = []
    for name, times in found.items():
        each = statistics.median(times[1:]) / call.pairs()
        rows.append(
            {
                "kind": kind,
                "length": length,
                "backend": name,
                "ns per pair": round(1e9 * each, 2),
                "relative to SDPA": round(each / unit, 2),
            }
        )
    return rows


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--backends", nargs="+", choices=list(attention.backends), default=list(attention.backends)[1:])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--backward", action="store_true", help="with the gradients")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for length in options.lengths:
        for kind in options.kinds:
            for row in measure(kind, options, length, getattr(torch, options.dtype)):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
