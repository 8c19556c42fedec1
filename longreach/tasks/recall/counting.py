"""Counting: how often does this token stand in the sequence?  (Poli et al. 2023, https://arxiv.org/abs/2302.10866)

    a c a b c a  =>  c      2

The token that is asked for stands there from 0 to `largest` times, each number equally often; the places between are
filled with the others.  Numbers are tokens of their own.

Axes: b examples, l positions.
"""

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from longreach.errors import InputError
from longreach.tasks.base import Batch
from longreach.tasks.recall.draws import Draws
from longreach.tasks.recall.synthetic import TokenTask, answers_at, next_tokens


class Counting(TokenTask):
    """Count a token.

    Args:
        length: Tokens before the prompt.
        vocabulary: Number of tokens that are counted; the prompt and `largest` + 1 numbers come on top.
        largest: The largest number.
        batch_size: Examples per step, over all processes.
        seed: Another seed, other examples.
        n_held_out: Examples that models are judged by.
    """

    def __init__(
        self,
        length: int = 128,
        vocabulary: int = 10,
        largest: int = 9,
        *,
        batch_size: int = 32,
        seed: int = 0,
        n_held_out: int = 500,
    ) -> None:
        super().__init__(length=length, batch_size=batch_size, seed=seed, n_held_out=n_held_out)
        if vocabulary < 2 or not 1 <= largest <= length:
            raise InputError(f"{vocabulary=} must be at least 2, and {largest=} from 1 to length = {length}")
        self.n_counted, self.largest, self.n_answers = vocabulary, largest, largest + 1
        self.prompt, self.zero = vocabulary, vocabulary + 1
        self.vocab_size = vocabulary + 1 + self.n_answers

    @property
    def n_positions(self) -> int:
        """The tokens, the prompt and the token that is asked for."""
        return self.length + 2

    def make(self, draws: Draws, rows: int) -> Batch:
        """Examples in O(b l log l)."""
        asked = draws.integers(self.n_counted, rows, 1)
        count = draws.integers(self.n_answers, rows, 1)
        others = (asked + 1 + draws.integers(self.n_counted - 1, rows, self.length)) % self.n_counted
        tokens = np.where(draws.distinct(self.length, rows, self.length) < count, asked, others)
        question = [np.full((rows, 1), self.prompt), asked, self.zero + count]
        return next_tokens(np.concatenate([tokens, *question], axis=1), self.length + 1)

    def solve(self, inputs: Int64[ndarray, "b l"]) -> Int64[ndarray, "b l"]:
        """Count."""
        count = (inputs[:, :-2] == inputs[:, -1:]).sum(1, keepdims=True)
        return answers_at(inputs, slice(-1, None), self.zero + count)

    def record(self) -> dict[str, object]:
        """The arguments that say which examples there are."""
        return {**super().record(), "largest": self.largest}
