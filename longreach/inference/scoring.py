"""How well a model predicts documents: in one pass over the whole of each, and with only so much context allowed.

A document t_1 ... t_n is predicted token by token, the first from the separator before it and the separator after it
as well, so that its bits would be enough to write the document down: n + 1 targets from n + 1 inputs.

    inputs   sep t_1 ... t_n        whole document    every target from all inputs up to it, in chunks with the state
    targets  t_1 ... t_n sep        context c         every target from at least c/2 and at most c inputs up to it

For a context of c tokens the model reads windows of c inputs, each c/2 after the one before, and of each window the
second half counts.  A model that reads at most m positions gets the whole document in such windows of m, the first half
of the first one included.

Axes: b windows, l positions.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from longreach.errors import InputError
from longreach.inference.eval_mode import eval_mode
from longreach.models.language_model import LanguageModel

CHUNK = 16_384
"""How many positions the model reads at a time."""
NOTHING = -100
"""The target that does not count."""

Progress = Callable[[int], object]
"""Is told how many positions have been read since the last call."""


class Window(NamedTuple):
    """A stretch of a document's inputs, read from its beginning state; the targets from `first` on count."""

    start: int
    first: int
    stop: int


def windows(first: int, stop: int, context: int) -> Iterator[Window]:
    """Windows of at most `context` inputs in which every position from `first` to `stop` counts exactly once.

    Each counts with at least `context // 2 + 1` inputs up to and including it, or with all that there are.
    """
    half = max(1, context // 2)
    if first == 0:
        yield Window(0, 0, min(context, stop))
        first = context
    for at in range(first, stop, half):
        end = min(at + half, stop)
        yield Window(max(0, end - context), at, end)


def inputs_and_targets(
    tokens: Integer[np.ndarray, " n"], separator: int
) -> tuple[Int[Tensor, " n_plus_1"], Int[Tensor, " n_plus_1"]]:
    """What is read and what is predicted of a document, int64."""
    padded = np.concatenate([[separator], tokens, [separator]]).astype(np.int64)
    return torch.from_numpy(padded[:-1]), torch.from_numpy(padded[1:])


def document_losses(
    model: LanguageModel, tokens: Integer[np.ndarray, " n"], separator: int, progress: Progress = lambda read: None
) -> Float[Tensor, " n_plus_1"]:
    """The loss of every token of a document and of its end, in nats, float32 on the CPU.

    Every token sees all of the document before it, as far as the model can read.  One pass over the document (two where
    it is longer than the model reads); memory for a chunk and the state.
    """
    inputs, targets = inputs_and_targets(tokens, separator)
    readable = min(len(inputs), model.max_length or len(inputs))
    if readable < len(inputs) or readable <= CHUNK:  # without a state where it is not needed: forward is faster
        return window_losses(model, inputs, targets, list(windows(0, len(inputs), readable)), progress)
    losses, device = [], _device(model)
    with eval_mode(model):
        state = model.init_state(1)
        for x, y in zip(inputs.split(CHUNK), targets.split(CHUNK), strict=True):
            loss, state = model.score(x[None].to(device), y[None].to(device), state)
            losses.append(loss[0].float().cpu())
            progress(len(x))
    return torch.cat(losses)


def window_losses(
    model: LanguageModel,
    inputs: Int[Tensor, " n"],
    targets: Int[Tensor, " n"],
    chosen: Sequence[Window],
    progress: Progress = lambda read: None,
) -> Float[Tensor, " counted"]:
    """The losses of the positions that count in the windows, one window after the other.

    Windows are read together, as many as make a chunk; the shorter ones are padded at their end, where a causal model
    cannot see it.
    """
    if not model.causal:
        raise InputError(
            "the model reads the future (causal=False), so it has no probability of a text; use a causal one"
        )
    length = max((window.stop - window.start for window in chosen), default=1)
    at_once, losses, device = max(1, CHUNK // length), [], _device(model)
    for group in (chosen[i : i + at_once] for i in range(0, len(chosen), at_once)):
        x = torch.zeros(len(group), length, dtype=torch.int64)
        y = torch.full((len(group), length), NOTHING)
        for row, (start, first, stop) in enumerate(group):
            x[row, : stop - start] = inputs[start:stop]
            y[row, first - start : stop - start] = targets[first:stop]
        with eval_mode(model):
            loss = model.token_losses(x.to(device), y.to(device)).float().cpu()
        losses.append(loss[y != NOTHING])
        progress(x.numel())
    return torch.cat(losses) if losses else torch.empty(0)


def _device(model: LanguageModel) -> torch.device:
    return next(model.parameters()).device
