"""Multi-query associative recall: every key of the example is asked for, somewhere  (Arora et al. 2023, Zoology).

    a 3  c 1  .  .  c  .  .  .  a  .               c -> 1, a -> 3        https://arxiv.org/abs/2312.04927

The pairs come first, each key once.  Then there are places for questions at every second position, in which each key
appears once more, and sooner rather than later: the gap g is chosen with a probability of about a g^(a-1).  Only the
values are taught and asked, at the positions of the keys; they do not stand in the sequence.

Zoology fills the other positions with any tokens, keys included, which binds some keys anew and asks for others without
an answer; here `fill` draws from the values only.

Axes: b examples, l positions, p pairs, g places for questions.
"""

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray

from longreach.errors import InputError
from longreach.tasks.base import Batch
from longreach.tasks.recall.draws import Draws
from longreach.tasks.recall.synthetic import TokenTask, answers_at

BLANK = 0


class MultiQueryRecall(TokenTask):
    """Tell the value of every key; in parentheses the names in Zoology.

    Args:
        length: Tokens of an example, at least 4 for each pair (input_seq_len).
        vocabulary: Number of tokens: a blank, one less than half of them keys, half of them values (vocab_size).
        n_pairs: Pairs of an example; its keys are different, and so are its values (num_kv_pairs).
        power: The exponent a; 1 spreads the questions evenly (power_a).
        fill: Put random values instead of blanks where nothing is asked (random_non_queries).
        batch_size: Examples per step, over all processes.
        seed: Another seed, other examples.
        n_held_out: Examples that models are judged by.
    """

    def __init__(
        self,
        length: int = 128,
        vocabulary: int = 256,
        n_pairs: int = 8,
        power: float = 0.01,
        *,
        fill: bool = False,
        batch_size: int = 32,
        seed: int = 0,
        n_held_out: int = 500,
    ) -> None:
        super().__init__(length=length, batch_size=batch_size, seed=seed, n_held_out=n_held_out)
        self.first_value = vocabulary // 2
        if n_pairs < 1 or self.first_value - 1 < n_pairs:
            raise InputError(
                f"vocabulary = {vocabulary} must be at least {2 * n_pairs + 2} for {n_pairs=} (at least 1)"
            )
        if length < 4 * n_pairs:
            raise InputError(f"length = {length} must be at least {4 * n_pairs}: each of {n_pairs} pairs and questions")
        if power <= 0:
            raise InputError(f"power = {power} must be greater than 0; 1 spreads the questions evenly")
        self.vocab_size, self.n_pairs, self.power, self.fill = vocabulary, n_pairs, power, fill
        self.n_answers = vocabulary - self.first_value

    @property
    def n_positions(self) -> int:
        """The whole example."""
        return self.length

    def make(self, draws: Draws, rows: int) -> Batch:
        """Examples in O(b l log l)."""
        key = 1 + draws.distinct(self.first_value - 1, rows, self.n_pairs)
        value = self.first_value + draws.distinct(self.n_answers, rows, self.n_pairs)
        inputs = np.full((rows, self.length), BLANK)
        if self.fill:
            inputs[:] = self.first_value + draws.integers(self.n_answers, rows, self.length)
        inputs[:, 0 : 2 * self.n_pairs : 2], inputs[:, 1 : 2 * self.n_pairs : 2] = key, value
        np.put_along_axis(inputs, 2 * (self.n_pairs + self._places(draws, rows)), key, axis=1)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(self.solve(inputs)))

    def _places(self, draws: Draws, rows: int) -> Int64[ndarray, "b p"]:
        """Where the keys are asked: different places, one after the other with probabilities (g + 1)^(a - 1).

        The largest of log p + Gumbel noise are such a choice (Vieira 2014).
        """
        n_places = self.length // 2 - self.n_pairs
        weight = (self.power - 1) * np.log(np.arange(1, n_places + 1))
        noisy = weight - np.log(-np.log(draws.uniform(rows, n_places)))
        return np.argsort(-noisy, axis=1, kind="stable")[:, : self.n_pairs]

    def solve(self, inputs: Int64[ndarray, "b l"]) -> Int64[ndarray, "b l"]:
        """Keys that stand behind the pairs, looked up among them."""
        stop = 2 * self.n_pairs
        value_of = np.zeros((len(inputs), self.vocab_size), inputs.dtype)
        np.put_along_axis(value_of, inputs[:, 0:stop:2], inputs[:, 1:stop:2], axis=1)
        asked = (inputs > BLANK) & (inputs < self.first_value) & (np.arange(inputs.shape[1]) >= stop)
        return answers_at(inputs, asked, np.take_along_axis(value_of, inputs, axis=1)[asked])

    def record(self) -> dict[str, object]:
        """The arguments that say which examples there are."""
        return {**super().record(), "n_pairs": self.n_pairs, "power": self.power, "fill": self.fill}
