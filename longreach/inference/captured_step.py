"""Steps of generation as one CUDA graph: recorded once, then replayed, so that Python launches nothing a token.

A step of a small model is a few hundred kernels of a few microseconds each, and launching them one by one takes longer
than running them.  A recording always reads and writes the same memory, so the state lives in buffers:

    token buffer, state buffers  ->  model.step  ->  logits buffer, state buffers

That needs states whose tensors keep their shapes, as those of all recurrences do.  A key-value cache that grows, and
the blocks of an online convolution, which are merged as positions come, are other tensors in every step: models with
these run step by step.  Which kind a model is, one step tells: `changes` compares the state before and after.

Axes: b batch, v vocabulary.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from longreach.mixers.base import State, map_state
from longreach.models.language_model import LanguageModel

R = TypeVar("R")
Record = Callable[[Callable[[], R]], tuple[Callable[[], object], R]]
"""Records a call: what repeats it, and its result, which every repetition overwrites."""


def changes(before: State, after: State) -> str | None:
    """Why steps between states like these two cannot be recorded, or None if they can."""
    if len(before) != len(after):
        return f"a state of {len(before)} parts has {len(after)} after a step"
    for old, new in zip(before, after, strict=True):
        if isinstance(old, Tensor) != isinstance(new, Tensor):
            return "a tensor of the state is several ones after a step"
        if not isinstance(old, Tensor):
            if reason := changes(old, new):
                return reason
        elif (old.shape, old.dtype) != (new.shape, new.dtype):
            return f"a tensor of the state is {_kind(old)} before a step and {_kind(new)} after it"
    return None


def _kind(x: Tensor) -> str:
    return f"{tuple(x.shape)} of {x.dtype}"


def record_graph(run: Callable[[], R]) -> tuple[Callable[[], object], R]:
    """Record what `run` launches on the current GPU, after running it once for what only the first call does."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        run()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph.replay, result


class CapturedStep:
    """`model.step`, recorded for the batch of `state` and continued from there.

    Call it in the modes (inference, constant weights) in which it was made: these are part of the recording, and so is
    whatever was kept of the weights.

    Args:
        model: whose step it is, with weights that do not change.
        state: where to continue; it is copied, and `changes` must find none between it and the state after it.
        record: what records; another one stands in where there is no GPU.
    """

    def __init__(self, model: LanguageModel, state: State, *, record: Record[Tensor] = record_graph) -> None:
        buffers = map_state(lambda leaf: leaf.clone(memory_format=torch.contiguous_format), state)
        owned: set[int] = set()
        map_state(lambda leaf: owned.add(_address(leaf)) or leaf, buffers)
        (batch_size, device) = _first(buffers).shape[0], _first(buffers).device
        token = torch.zeros(batch_size, dtype=torch.int64, device=device)

        def run() -> Tensor:
            logits, after = model.step(token, buffers)
            apart = map_state(lambda leaf: leaf.clone() if _address(leaf) in owned else leaf, after)
            map_state(Tensor.copy_, buffers, apart)
            return logits

        self.state = buffers
        """The state after the last call.  The next one overwrites it."""
        self._token = token
        self._replay, self._logits = record(run)
        map_state(Tensor.copy_, buffers, state)  # recording has moved on

    def __call__(self, token: Tensor) -> Tensor:
        """Read one token in every row; the logits of the next (b, v), which the next call overwrites."""
        self._token.copy_(token)
        self._replay()
        return self._logits


def _address(x: Tensor) -> int:
    """Of the memory behind a tensor, which views of it share."""
    return x.untyped_storage().data_ptr()


def _first(state: State) -> Tensor:
    """Any tensor of a state."""
    return state[0] if isinstance(state[0], Tensor) else _first(state[0])
