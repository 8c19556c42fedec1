"""Addition of two numbers, digit by digit  (Poli et al. 2023, https://arxiv.org/abs/2302.10866).

    4 7 8 5      1 3 2          47 + 85 = 132

The digits of both numbers, highest first, and those of the sum, of which there is one more.  The digits of the sum are
what is taught, and all of them are asked, each after the right ones before it.

Axes: b examples, l positions, e digits of a number.
"""

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from longreach.tasks.base import Batch
from longreach.tasks.recall.draws import Draws
from longreach.tasks.recall.synthetic import TokenTask, answers_at, next_tokens

BASE = 10


class Addition(TokenTask):
    """Add; chance is one of ten, although the first digit of a sum is 0 or 1.

    Args:
        length: Digits of each of the two numbers.
        batch_size: Examples per step, over all processes.
        seed: Another seed, other examples.
        n_held_out: Examples that models are judged by.
    """

    vocab_size = n_answers = BASE

    def __init__(self, length: int = 3, *, batch_size: int = 32, seed: int = 0, n_held_out: int = 500) -> None:
        super().__init__(length=length, batch_size=batch_size, seed=seed, n_held_out=n_held_out)

    @property
    def n_positions(self) -> int:
        """Both numbers and all but the last digit of the sum."""
        return 3 * self.length

    def make(self, draws: Draws, rows: int) -> Batch:
        """Examples in O(b l)."""
        terms = draws.integers(BASE, rows, 2, self.length)
        tokens = np.concatenate([terms.reshape(rows, -1), _sum(terms)], axis=1)
        return next_tokens(tokens, 2 * self.length - 1)

    def solve(self, inputs: Int64[ndarray, "b l"]) -> Int64[ndarray, "b l"]:
        """Add."""
        terms = inputs[:, : 2 * self.length].reshape(-1, 2, self.length)
        return answers_at(inputs, slice(2 * self.length - 1, None), _sum(terms))


def _sum(terms: Int64[ndarray, "b two e"]) -> Int64[ndarray, "b e+1"]:
    """The digits of the sums, by hand: numbers may be longer than any integer type."""
    digits = np.pad(terms.sum(1), [(0, 0), (1, 0)])
    for place in range(digits.shape[1] - 1, 0, -1):
        digits[:, place - 1] += digits[:, place] // BASE
    return digits % BASE
