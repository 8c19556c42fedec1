"""What an entry of `longreach bench ops` is, and what all of them are made with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longreach.ops import OPS, use_backend

LONG = 1 << 14
"""Above this length inputs are four times as large, so that there are channels for every thread."""
CHANNELS, MODES, WIDTH = 256, 32, 64
"""Of most cases: channels; modes of a channel, one of each conjugate pair; features of a head."""
FEW_CHANNELS = 64
"""Where a baseline keeps every power of every mode in memory."""
OUR_TORCH = "our torch form"
ALL = (256, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20)
MIDDLE = (1 << 10, 1 << 12, 1 << 14)

Inputs = Callable[[int, int], list[Any]]


class OperatorCase(NamedTuple):
    """One operator on one kind of input; `inputs(length, elements)` makes it, with about so many numbers."""

    operator: str
    name: str
    lengths: tuple[int, ...]
    inputs: Inputs
    ours: Callable[..., Tensor]
    baselines: dict[str, Callable[..., Tensor]]
    tuned: bool = False
    """Whether both sides get an allocator that keeps what is freed, in a process of their own."""


@contextmanager
def on_torch() -> Iterator[None]:
    """Inside the block no compiled kernel of ours is used: every operator that has one takes what comes before it."""
    with use_backend(**{name: _before_native(op.backends) for name, op in OPS.items() if "native" in op.backends}):
        yield


def _before_native(backends: dict[str, Any]) -> str:
    names = list(backends)
    return names[names.index("native") - 1]


def running_on_torch(ours: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same without any compiled kernel of ours."""

    def run(*inputs: Any) -> Tensor:
        with on_torch():
            return ours(*inputs)

    return run


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random input that wants its gradient."""
    return torch.randn(*shape, dtype=dtype).requires_grad_()
