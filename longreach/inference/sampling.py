"""The choice of the next token from a model's logits.

    p = softmax(logits / temperature)                                          sharper below 1, flatter above
    keep the top_k likeliest; of these, scaled to sum 1, the fewest whose      https://arxiv.org/abs/1904.09751 (top_p)
    probabilities reach top_p; scale to sum 1 again
    token = the first in order of probability whose cumulative sum passes u    u uniform in [0, 1)

One uniform number a token is all the chance there is, so a row of a batch that brings its own numbers gets its own
text, whatever else is in the batch.

Axes: b batch, v vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from longreach.errors import InputError


@dataclass(frozen=True)
class GenerationOptions:
    """How a prompt is continued.

    Args:
        max_new_tokens: Write at most so many tokens.
        temperature: 0 always takes the likeliest token; 1 samples from the model's own distribution.
        top_k: Sample among so many of the likeliest tokens; all by default.
        top_p: Sample among the fewest tokens that together have this probability; all by default.
        seed: The same seed, model and prompt give the same text, alone or in a batch with others.
        stop: Strings that end the text when they appear; they are not part of it.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}; ask for at least one")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(
                f"temperature is {self.temperature}; it must be 0 (always the likeliest token) or positive"
            )
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}; it must keep at least 1 token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it is a probability above 0 and at most 1")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it must not be negative")
        if "" in self.stop:
            raise InputError("a stop string is empty, so nothing could be written; leave it out")


def choose_tokens(
    logits: Float[Tensor, "b v"], uniform: Float[Tensor, " b"], options: GenerationOptions
) -> Int[Tensor, " b"]:
    """One token for every row, from `uniform` numbers in [0, 1).  Raises InputError where a logit is NaN or infinite.

    Computed in float64: O(v log v) for the sorting, nothing to speak of beside a step of the model.
    """
    if not logits.isfinite().all():
        raise InputError("the model gives logits that are not finite; its weights are damaged or its training diverged")
    if options.temperature == 0:
        return logits.argmax(-1)
    ordered, tokens = torch.sort(logits.double(), dim=-1, descending=True, stable=True)
    if options.top_k is not None:
        ordered = ordered[:, : options.top_k]
    probabilities = torch.softmax((ordered - ordered[:, :1]) / options.temperature, dim=-1)
    if options.top_p is not None:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.where(before < options.top_p, 0.0)
    cumulative = probabilities.cumsum(-1)
    passed = cumulative <= uniform.double()[:, None] * cumulative[:, -1:]  # never all: in float64 too, u c < c
    return tokens.gather(-1, passed.sum(-1, keepdim=True)).squeeze(-1)


def random_streams(prompts: Sequence[Sequence[int]], seed: int) -> list[np.random.Generator]:
    """One source of uniform numbers for each prompt.

    The first copy of every prompt has the same source, so that its text does not depend on the others; the n-th copy of
    the same prompt has the n-th source, so that repeating a prompt gives different samples.
    """
    copies: dict[tuple[int, ...], int] = {}
    streams = []
    for prompt in prompts:
        key = tuple(prompt)
        copies[key] = copies.get(key, -1) + 1
        streams.append(np.random.default_rng([seed, copies[key]]))
    return streams
