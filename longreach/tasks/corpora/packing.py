"""From a row of tokens to batches, as a pure function of the step.

The documents of a part stand in one row, each behind a separator, and the row is read as a ring: where a window runs
over the end it goes on at the beginning, which is a separator like any other.  Epoch e lays windows of `context`
targets side by side from a random start, and visits them in a random order:

    window w of epoch e     targets  start_e + w * context + (1 ... context)  (mod number of tokens)
    example g of a stage    window   permutation_e(g mod W)  of epoch  e = g div W,  with W = ceil(tokens / context)

so an epoch has every token as a target, and fewer than `context` of them twice.  Start and permutation are computed
from (seed, stage, epoch), so no list of windows is kept.

A length curriculum is a list of stages with shorter contexts at the beginning (the sequence length warm-up of HyenaDNA,
https://arxiv.org/abs/2306.15794).  A stage says its batch size; where it does not, each step keeps its number of
tokens, so a shorter context makes a larger batch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Integer, UInt64
from numpy import ndarray

from longreach.errors import InputError
from longreach.tasks.base import Batch

ROUNDS = 6


@dataclass(frozen=True)
class Stage:
    """A stage of the length curriculum.

    Args:
        until_step: The first step that is not of this stage any more.
        context: The context in this stage.
        batch_size: Sequences per step in this stage; by default as many as keep the number of tokens per step, for
            which the context must divide the full one.  Smaller steps learn more from the first tokens of a run.
    """

    until_step: int
    context: int
    batch_size: int | None = None


class _Span(NamedTuple):
    """A stage as it is used: from which step on, with which sizes."""

    number: int
    first_step: int
    context: int
    batch_size: int


class Packer:
    """Batches of windows over a row of tokens.

    Args:
        tokens: The row, typically memory-mapped.
        context: Number of inputs, and of targets, of an example.
        batch_size: Examples per step at the full context.
        seed: Another seed, another order.
        curriculum: Earlier stages with shorter contexts, in order.
    """

    def __init__(
        self,
        tokens: Integer[ndarray, " t"],
        context: int,
        batch_size: int,
        seed: int = 0,
        curriculum: Sequence[Stage] = (),
    ) -> None:
        check_sizes(context, batch_size, curriculum)
        if len(tokens) < context + 1:
            raise InputError(
                f"the training text has {len(tokens)} tokens, too few for context = {context} and the token after it; "
                f"use more text, or a context of at most {len(tokens) - 1}"
            )
        self.tokens = tokens
        self.context = context
        self.batch_size = batch_size
        self.seed = seed
        self.curriculum = tuple(curriculum)

    def batch(self, step: int, part: int, parts: int) -> Batch:
        """The `part`-th of the `parts` equal parts of the batch of `step`, as int64 tensors."""
        span = self._span(step)
        if span.batch_size % parts:
            raise InputError(
                f"batch_size = {span.batch_size} cannot be divided equally into {parts} parts, one for each process; "
                f"use a multiple of {parts}"
            )
        share = span.batch_size // parts
        first = (step - span.first_step) * span.batch_size + part * share
        starts = self._window_starts(np.arange(first, first + share, dtype=np.uint64), span)
        places = (starts[:, None] + np.arange(span.context + 1)) % len(self.tokens)
        windows = torch.from_numpy(self.tokens[places].astype(np.int64))
        return Batch(windows[:, :-1], windows[:, 1:])

    def n_targets(self, first_step: int, stop_step: int) -> int:
        """How many targets all steps from `first_step` up to `stop_step` have together."""
        ends = [stage.until_step for stage in self.curriculum if first_step < stage.until_step < stop_step]
        starts = [first_step, *ends]
        spans = [self._span(start) for start in starts]
        return sum(
            (stop - start) * span.context * span.batch_size
            for start, stop, span in zip(starts, [*ends, stop_step], spans, strict=True)
        )

    def _span(self, step: int) -> _Span:
        """The stage that a step belongs to."""
        first_step = 0
        for index, stage in enumerate(self.curriculum):
            if step < stage.until_step:
                batch_size = stage.batch_size or self.batch_size * self.context // stage.context
                return _Span(index, first_step, stage.context, batch_size)
            first_step = stage.until_step
        return _Span(len(self.curriculum), first_step, self.context, self.batch_size)

    def _window_starts(self, examples: UInt64[ndarray, " b"], span: _Span) -> Integer[ndarray, " b"]:
        """Where the window of each example starts in the row."""
        n_windows = -(-len(self.tokens) // span.context)
        starts = np.empty(len(examples), np.int64)
        epochs = examples // np.uint64(n_windows)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            key = hashlib.sha256(f"{self.seed} {span.number} {epoch}".encode()).digest()
            offset = int.from_bytes(key[:8], "little") % len(self.tokens)
            windows = permute(examples[chosen] % np.uint64(n_windows), n_windows, int.from_bytes(key[8:16], "little"))
            starts[chosen] = offset + windows.astype(np.int64) * span.context
        return starts


def check_sizes(context: int, batch_size: int, curriculum: Sequence[Stage]) -> None:
    """Raise InputError unless the sizes are positive and the stages fit each other."""
    if context < 1 or batch_size < 1:
        raise InputError(f"context = {context} and batch_size = {batch_size} must be at least 1")
    reached = 0
    for stage in curriculum:
        if not 1 <= stage.context <= context:
            raise InputError(f"curriculum: context {stage.context} must be from 1 to the full context, {context}")
        if stage.batch_size is None and context % stage.context:
            raise InputError(
                f"curriculum: context {stage.context} must divide the full context, {context}, or be given a batch_size"
            )
        if stage.batch_size is not None and stage.batch_size < 1:
            raise InputError(f"curriculum: batch_size {stage.batch_size} must be at least 1")
        if stage.until_step <= reached:
            raise InputError(
                f"curriculum: until_step {stage.until_step} must be greater than the stage's start, {reached}"
            )
        reached = stage.until_step


def permute(index: UInt64[ndarray, " n"], size: int, key: int) -> UInt64[ndarray, " n"]:
    """The images of some of the numbers below `size` under a random permutation of all of them.

    A Feistel network permutes the next power of four (https://doi.org/10.1137/0217022); what lands outside goes round
    again until it is inside, which keeps the map one to one.  Fewer than four rounds on average, no memory.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    keys = np.frombuffer(hashlib.shake_256(key.to_bytes(8, "little")).digest(8 * ROUNDS), "<u8")
    index = index.copy()
    outside = np.ones(len(index), bool)
    while outside.any():
        left, right = index[outside] >> half, index[outside] & low
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & low)
        index[outside] = (left << half) | right
        outside = index >= size
    return index


def _mix(x: UInt64[ndarray, " n"]) -> UInt64[ndarray, " n"]:
    """A hash of 64 bits (the finaliser of SplitMix64, https://doi.org/10.1145/2714064.2660195)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
