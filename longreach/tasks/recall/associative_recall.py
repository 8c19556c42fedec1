"""Associative recall: which value stood behind this key?  (Ba et al. 2016, https://arxiv.org/abs/1610.06258)

    a 3  c 1  b 2  a 3  b 2  =>  c      1          as in H3, https://arxiv.org/abs/2212.14052, section 3

Half of the ordinary tokens are keys and half are values; what value a key has is drawn anew for every example.  Pairs
of keys and values follow each other, then the prompt, then a key that has appeared.  Every next token is taught,
the value after that key is asked.  This is the task of safari's `assoc_recall`, token by token.

Axes: b examples, l positions, m keys, p pairs, j tokens of a key.
"""

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from longreach.errors import InputError
from longreach.tasks.base import Batch
from longreach.tasks.recall.draws import Draws
from longreach.tasks.recall.synthetic import TokenTask, answers_at, next_tokens

BLANK = 0
"""The value of a key that has not appeared."""
MAX_KEYS = 2**20
"""A map from more keys than that would not be held for every example."""


class AssociativeRecall(TokenTask):
    """Tell the value of a key; in parentheses the names in safari.

    Args:
        length: Tokens of the pairs, rounded down to whole pairs (input_seq_len); the question has `key_length` + 1.
        vocabulary: Number of tokens: a blank, the prompt, and keys and values (vocab_size).
        key_length: Tokens of a key (num_keys).
        missing: Ask also for keys that have not appeared, to which the answer is the blank (allow_dot).
        batch_size: Examples per step, over all processes.
        seed: Another seed, other examples.
        n_held_out: Examples that models are judged by (num_test_examples).
    """

    def __init__(
        self,
        length: int = 128,
        vocabulary: int = 20,
        key_length: int = 1,
        *,
        missing: bool = False,
        batch_size: int = 32,
        seed: int = 0,
        n_held_out: int = 500,
    ) -> None:
        super().__init__(length=length, batch_size=batch_size, seed=seed, n_held_out=n_held_out)
        if vocabulary < 4:
            raise InputError(f"vocabulary = {vocabulary} must be at least 4: blank, prompt, a key and a value")
        self.vocab_size, self.key_length, self.missing = vocabulary, key_length, missing
        self.n_letters = (vocabulary - 2) // 2
        self.first_value, self.prompt = 1 + self.n_letters, vocabulary - 1
        self.n_values = self.prompt - self.first_value
        self.n_answers = self.n_values + missing
        self.n_pairs = length // (key_length + 1) if key_length > 0 else 0
        if self.n_pairs < 1:
            raise InputError(f"length = {length} has no room for a pair with key_length = {key_length} (at least 1)")
        self.n_keys = self.n_letters**key_length
        if self.n_keys > MAX_KEYS:
            raise InputError(
                f"{self.n_letters} letters make {self.n_keys:,} keys of {key_length}; at most {MAX_KEYS:,}"
            )

    @property
    def n_positions(self) -> int:
        """The pairs and the question."""
        return self.n_pairs * (self.key_length + 1) + 1 + self.key_length

    def make(self, draws: Draws, rows: int) -> Batch:
        """Examples in O(b (l + m))."""
        values = self.first_value + draws.integers(self.n_values, rows, self.n_keys)
        chosen = draws.integers(self.n_keys, rows, self.n_pairs)
        appeared = np.full((rows, self.n_keys), self.missing)
        np.put_along_axis(appeared, chosen, True, axis=1)
        asked = np.where(appeared, draws.uniform(rows, self.n_keys), 0).argmax(1)[:, None]
        pairs = np.concatenate([self._spell(chosen), np.take_along_axis(values, chosen, 1)[..., None]], axis=2)
        prompt = np.full((rows, 1), self.prompt)
        context = np.concatenate([pairs.reshape(rows, -1), prompt, self._spell(asked)[:, 0]], axis=1)
        return next_tokens(np.concatenate([context, self.solve(context)[:, -1:]], axis=1))

    def _spell(self, key: Int64[ndarray, "b p"]) -> Int64[ndarray, "b p j"]:
        """The tokens of keys: their digits, in the base of the number of letters."""
        place = self.n_letters ** np.arange(self.key_length - 1, -1, -1)
        return 1 + key[..., None] // place % self.n_letters

    def solve(self, inputs: Int64[ndarray, "b l"]) -> Int64[ndarray, "b l"]:
        """Look the last key up among the pairs."""
        width = self.key_length + 1
        pairs = inputs[:, :-width].reshape(len(inputs), -1, width)
        same = (pairs[..., :-1] == inputs[:, None, -self.key_length :]).all(2)
        value = np.take_along_axis(pairs[..., -1], same.argmax(1)[:, None], axis=1)
        return answers_at(inputs, slice(-1, None), np.where(same.any(1, keepdims=True), value, BLANK))

    def record(self) -> dict[str, object]:
        """The arguments that say which examples there are."""
        return {**super().record(), "key_length": self.key_length, "missing": self.missing}
