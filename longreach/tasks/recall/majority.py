"""Majority: which token is the most frequent one?  (Poli et al. 2023, https://arxiv.org/abs/2302.10866)

    a c a b c a  =>      a

Axes: b examples, l positions, v ordinary tokens.
"""

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from longreach.errors import InputError
from longreach.tasks.base import Batch
from longreach.tasks.recall.draws import Draws
from longreach.tasks.recall.synthetic import TokenTask, answers_at, next_tokens


class Majority(TokenTask):
    """Tell the most frequent token.

    Tokens are equally likely; then one place goes to a token that is the most frequent, so that it is so alone.

    Args:
        length: Tokens before the prompt.
        vocabulary: Number of tokens: the prompt, which is token 0, and the others.
        batch_size: Examples per step, over all processes.
        seed: Another seed, other examples.
        n_held_out: Examples that models are judged by.
    """

    def __init__(
        self,
        length: int = 128,
        vocabulary: int = 10,
        *,
        batch_size: int = 32,
        seed: int = 0,
        n_held_out: int = 500,
    ) -> None:
        super().__init__(length=length, batch_size=batch_size, seed=seed, n_held_out=n_held_out)
        if vocabulary < 2:
            raise InputError(f"vocabulary = {vocabulary} must be at least 2: the prompt and a token")
        self.vocab_size, self.n_answers, self.prompt = vocabulary, vocabulary - 1, 0

    @property
    def n_positions(self) -> int:
        """The tokens and the prompt."""
        return self.length + 1

    def make(self, draws: Draws, rows: int) -> Batch:
        """Examples in O(b (l + v))."""
        tokens = 1 + draws.integers(self.n_answers, rows, self.length)
        winner = (self._counts(tokens) + draws.uniform(rows, self.vocab_size)).argmax(1)[:, None]
        other = np.where(tokens == winner, 0, draws.uniform(rows, self.length)).argmax(1)[:, None]
        np.put_along_axis(tokens, other, winner, axis=1)
        return next_tokens(np.concatenate([tokens, np.full((rows, 1), self.prompt), winner], axis=1), self.length)

    def _counts(self, tokens: Int64[ndarray, "b l"]) -> Int64[ndarray, "b v"]:
        """How often each token stands in each row; the prompt is never the most frequent one."""
        row = np.arange(len(tokens))[:, None] * self.vocab_size
        counts = np.bincount((row + tokens).ravel(), minlength=len(tokens) * self.vocab_size)
        counts = counts.reshape(len(tokens), self.vocab_size)
        counts[:, self.prompt] = -1
        return counts

    def solve(self, inputs: Int64[ndarray, "b l"]) -> Int64[ndarray, "b l"]:
        """Count."""
        return answers_at(inputs, slice(-1, None), self._counts(inputs).argmax(1)[:, None])
