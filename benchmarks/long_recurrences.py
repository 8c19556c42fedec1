"""How exact float32 stays over a million steps: every recurrence against the same in float64.

python benchmarks/long_recurrences.py [--length 1048576] [--out FILE]

White noise goes in.  Reported is the largest error of an output divided by the root mean square of all outputs, among
the first 4,096 positions, the 4,096 in the middle and the last 4,096: a recurrence that drifts grows from left to
right.  Both precisions have the same float32 inputs and weights.  Prints a Markdown table.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from longreach.mixers import S4D, Hyena
from longreach.mixers.base import SequenceMixer
from longreach.ops import linear_scan, long_conv
from longreach.ops.modal import ModalSystem, modal_step
from longreach.ops.online_conv import init_online_conv, online_conv_prefill
from longreach.ops.wkv import wkv
from longreach.ops.wkv_state import init_wkv

CHANNELS, SHOWN = 4, 4096
Outputs = Callable[[torch.dtype], Tensor]


def in_chunks(mixer: SequenceMixer, x: Tensor, size: int) -> Tensor:
    """The recurrent view, `size` positions at a time."""
    state, outputs = mixer.init_state(1), []
    for chunk in x.split(size, dim=1):
        y, state = mixer.prefill(chunk, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1)


def in_steps(mixer: SequenceMixer, x: Tensor) -> Tensor:
    """One position at a time, the system sampled once: `step` samples it every time, with the same result."""
    assert isinstance(mixer, S4D)
    modes, outputs = mixer.init_state(1).modes, []
    log_abar, bbar, (C,) = mixer._system()
    for u in x.unbind(1):
        y, modes = modal_step(u, modes, *ModalSystem(log_abar, bbar, C).recurrence)
        outputs.append(y + mixer.D * u)
    return torch.stack(outputs, dim=1)


def views(mixer: SequenceMixer, x: Tensor, sizes: list[int]) -> Iterator[tuple[str, Outputs, Outputs]]:
    """Each view of a mixer in both precisions; what is exact is its parallel view in float64."""

    def of(dtype: torch.dtype) -> tuple[SequenceMixer, Tensor]:
        return copy.deepcopy(mixer).to(dtype).eval(), x.to(dtype)

    def exact(dtype: torch.dtype) -> Tensor:
        made, inputs = of(dtype)
        return made(inputs)

    name = type(mixer).__name__
    yield f"{name}, parallel", exact, exact
    for size in sizes:
        yield f"{name}, prefill of {size:,}", lambda dtype, size=size: in_chunks(*of(dtype), size), exact
    if isinstance(mixer, S4D):
        yield f"{name}, steps", lambda dtype: in_steps(*of(dtype)), exact


def recurrences(length: int) -> Iterator[tuple[str, Outputs, Outputs]]:
    """Name, what is computed, and what it is compared with in float64."""
    forget = 10 ** -torch.linspace(1, 6, CHANNELS)  # one channel forgets within ten steps, one within a million
    x = torch.randn(1, length, CHANNELS)
    turn = torch.polar((1 - forget).double(), torch.linspace(0.1, 3, CHANNELS).double()).to(torch.complex64)

    def scan(a: Tensor, dtype: torch.dtype) -> Tensor:
        inputs = x.to(dtype)
        return linear_scan(a.to(dtype).expand(1, length, -1), inputs, inputs.new_zeros(1, CHANNELS))

    def real(dtype: torch.dtype) -> Tensor:
        return scan(1 - forget, dtype)

    def turning(dtype: torch.dtype) -> Tensor:
        return scan(turn, {torch.float32: torch.complex64, torch.float64: torch.complex128}[dtype])

    yield "linear_scan, real", real, real
    yield "linear_scan, complex", turning, turning
    key, log_decay = 3 * torch.randn(1, length, CHANNELS), -(10 ** torch.linspace(-6, 0.5, CHANNELS))

    def average(dtype: torch.dtype, size: int = length) -> Tensor:
        decay, keys, values = (tensor.to(dtype) for tensor in (log_decay, key, x))
        state, outputs = init_wkv(1, decay), []
        for k, v in zip(keys.split(size, dim=1), values.split(size, dim=1), strict=True):
            y, state = wkv(decay, torch.zeros_like(decay), k, v, state)
            outputs.append(y)
        return torch.cat(outputs, dim=1)

    yield "wkv, parallel", average, average
    yield "wkv, 4,096 at a time", lambda dtype: average(dtype, 4096), average
    for dt_min in (1e-3, 1e-6):  # the longest memory that S4D starts with, and one a thousand times as long
        for name, ours, exact in views(S4D(CHANNELS, dt_min=dt_min, dt_max=100 * dt_min), x, [16_384]):
            yield f"{name}; dt from {dt_min:.0e}", ours, exact
    taps = torch.randn(CHANNELS, length) * torch.exp(-10 * torch.arange(length) / length)

    def filtered(dtype: torch.dtype) -> Tensor:
        return long_conv(x.mT.to(dtype), taps.to(dtype)).mT

    def online(dtype: torch.dtype, size: int) -> Tensor:
        state, outputs, kernel = init_online_conv(1, CHANNELS, dtype=dtype), [], taps.to(dtype)
        for chunk in x.mT.to(dtype).split(size, dim=-1):
            y, state = online_conv_prefill(chunk, state, lambda count: kernel[:, :count], length)
            outputs.append(y)
        return torch.cat(outputs, dim=-1).mT

    yield "long_conv", filtered, filtered
    for size in (16_384, 64):
        yield f"online_conv, {size:,} at a time", partial(online, size=size), filtered
    yield from views(Hyena(CHANNELS, max_length=length), x, [16_384])


def errors(ours: Tensor, exact: Tensor) -> list[float]:
    """At the beginning, in the middle and at the end, relative to the size of the outputs."""
    size = exact.abs().square().mean().sqrt()
    error = ((ours.to(exact.dtype) - exact).abs().amax(-1) / size)[0]
    middle = (len(error) - SHOWN) // 2
    return [float(part.max()) for part in (error[:SHOWN], error[middle : middle + SHOWN], error[-SHOWN:])]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=2**20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = {}
    print(f"| {options.length:,} steps in float32 | first | middle | last |")
    print("|---|---|---|---|")
    with torch.inference_mode():
        for name, ours, exact in recurrences(options.length):
            rows[name] = errors(ours(torch.float32), exact(torch.float64))
            print(f"| {name} | " + " | ".join(f"{error:.0e}" for error in rows[name]) + " |", flush=True)
    if options.out:
        options.out.write_text(json.dumps({"length": options.length, "errors": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
