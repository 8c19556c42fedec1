"""Time and peak memory of every mixer against the length of its input, forward and forward with backward.

Each mixer is measured in a process of its own, from the shortest length up, so that one that runs out of memory or time
costs its own longer lengths and nothing else.  Times are medians of several runs.  Memory is what a run needs beyond
the mixer and its input (longreach.bench.memory).

Axes: b batch, l length, d model width.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longreach import mixers
from longreach.bench.memory import peak_bytes
from longreach.bench.own_process import own_process
from longreach.bench.timing import median_seconds
from longreach.errors import InputError
from longreach.mixers import SequenceMixer

WARM_UP_LENGTH = 64
OPTIONALLY_LIMITED = ("DSS", "Sinkhorn")
"""Mixers that need a `max_length` for long sequences, though it has a default."""
PATIENCE = 12
"""A process that is silent for this many times the limit is stopped."""
NEEDED = {"n_heads": 4}
"""Values for arguments that have no default, apart from `max_length`, which gets the length that is measured."""


@dataclass(frozen=True)
class CostOptions:
    """How mixers are measured.

    Attributes:
        d_model: width of the mixers.
        batch_size: sequences at once.
        threads: processor threads; 0 for torch's own choice.
        limit: seconds for a forward and backward run; a mixer that takes longer is not tried on longer sequences.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one.
    """

    d_model: int = 256
    batch_size: int = 1
    threads: int = 0
    limit: float = 30.0
    device: str = "auto"


class MixerCost(NamedTuple):
    """What one mixer costs at one length; seconds and bytes are None where they could not be measured."""

    mixer: str
    length: int
    forward_seconds: float | None = None
    forward_bytes: int | None = None
    training_seconds: float | None = None
    """Forward and backward."""
    training_bytes: int | None = None
    note: str = ""
    """Why nothing was measured."""


def mixer_names() -> list[str]:
    """All mixers of this package, by class name."""
    classes = {name: getattr(mixers, name) for name in mixers.__all__}
    return [
        name
        for name, cls in classes.items()
        if inspect.isclass(cls) and issubclass(cls, SequenceMixer) and cls is not SequenceMixer
    ]


def build_mixer(name: str, d_model: int, length: int) -> SequenceMixer:
    """A mixer with its default options, able to read `length` positions."""
    cls = getattr(mixers, name)
    given: dict[str, Any] = {}
    for parameter in inspect.signature(cls).parameters.values():
        needed = parameter.default is parameter.empty or name in OPTIONALLY_LIMITED
        if needed and parameter.name in ("max_length", *NEEDED):
            given[parameter.name] = NEEDED.get(parameter.name, length)
    return cls(d_model, **given)


def measure_mixers(names: Sequence[str], lengths: Sequence[int], options: CostOptions) -> Iterator[MixerCost]:
    """The cost of each mixer at each length, as they are found.

    Raises InputError for a name that is no mixer, lengths below 1, or a device that is not there.
    """
    unknown = [name for name in names if name not in mixer_names()]
    if unknown:
        raise InputError(f"there is no mixer {unknown[0]!r}; the mixers are {', '.join(mixer_names())}")
    if not lengths or min(lengths) < 1 or options.batch_size < 1 or options.d_model < 1:
        raise InputError(f"lengths {list(lengths)}, batch_size and d_model must be at least 1")
    if options.device not in ("auto", "cpu", "cuda") or (options.device == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"device {options.device!r} is not there; give cpu, cuda or auto")
    for name in names:
        yield from _in_own_process(name, sorted(set(lengths)), options)


def _in_own_process(name: str, lengths: list[int], options: CostOptions) -> Iterator[MixerCost]:
    note = ""
    with own_process(_measure_one, name, lengths, options) as receive:
        for length in lengths:
            answer = note or receive(PATIENCE * options.limit)
            cost = MixerCost(name, length, note=answer) if isinstance(answer, str) else answer
            note = cost.note
            yield cost


def _measure_one(name: str, lengths: list[int], options: CostOptions, results: Connection) -> None:
    """Measure one mixer at all lengths; runs in the process of its own."""
    if options.threads:
        torch.set_num_threads(options.threads)
    slow = ""
    for length in lengths:
        cost = MixerCost(name, length, note=slow) if slow else _measure(name, length, options)
        if cost.training_seconds is not None and cost.training_seconds > options.limit:
            slow = f"over {options.limit:g} s at length {cost.length:,}"
        results.send(cost)


def _measure(name: str, length: int, options: CostOptions) -> MixerCost:
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    try:
        mixer = build_mixer(name, options.d_model, length).to(device)
        x = torch.randn(options.batch_size, length, options.d_model, device=device)
        cotangent = torch.randn_like(x)

        def forward(x: Tensor) -> None:
            with torch.no_grad():
                mixer(x)

        def train(x: Tensor) -> None:
            mixer.zero_grad()
            mixer(x.requires_grad_()).backward(cotangent[:, : x.shape[1]])

        short = x[:, :WARM_UP_LENGTH].clone()
        for run in (forward, train):
            run(short)
        forward_bytes, forward_seconds = (
            peak_bytes(lambda: forward(x), device),
            median_seconds(lambda: forward(x), device),
        )
        training_bytes, training_seconds = (
            peak_bytes(lambda: train(x), device),
            median_seconds(lambda: train(x), device),
        )
    except (InputError, RuntimeError, MemoryError) as error:
        return MixerCost(name, length, note=str(error).splitlines()[0])
    return MixerCost(name, length, forward_seconds, forward_bytes, training_seconds, training_bytes)
