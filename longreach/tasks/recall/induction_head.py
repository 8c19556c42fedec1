"""Induction heads: what stood behind the prompt before?  (Olsson et al. 2022, https://arxiv.org/abs/2209.11895)

    a b => c  e a d b =>      c                    as in H3, https://arxiv.org/abs/2212.14052, section 3

Random tokens; somewhere among them, once, the prompt; at the end the prompt again, behind which the same has to
follow.  Every next token is taught, what follows the last prompt is asked.  This is the task of safari's
`induction_head`, token by token.

Axes: b examples, l positions, t prompts, c copied tokens.
"""

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from longreach.errors import InputError
from longreach.tasks.base import Batch
from longreach.tasks.recall.draws import Draws
from longreach.tasks.recall.synthetic import TokenTask, answers_at, next_tokens


class InductionHead(TokenTask):
    """Repeat what followed the prompt; in parentheses the names in safari.

    Args:
        length: Random tokens (input_seq_len); the last prompt and all but one of the copied tokens come after them.
        vocabulary: Number of tokens: a blank that does not appear, the prompt, and the others (vocab_size).
        n_copied: Tokens to be repeated (induction_len).
        n_prompts: In half of the examples, about so many prompts, each with the same tokens behind it; prompts within
            the tokens of another are left out (induction_num_triggers).
        batch_size: Examples per step, over all processes.
        seed: Another seed, other examples.
        n_held_out: Examples that models are judged by (num_test_examples).
    """

    def __init__(
        self,
        length: int = 128,
        vocabulary: int = 20,
        n_copied: int = 1,
        n_prompts: int = 1,
        *,
        batch_size: int = 32,
        seed: int = 0,
        n_held_out: int = 500,
    ) -> None:
        super().__init__(length=length, batch_size=batch_size, seed=seed, n_held_out=n_held_out)
        if vocabulary < 3 or n_copied < 1 or n_prompts < 1:
            raise InputError(f"{vocabulary=}, {n_copied=}, {n_prompts=}: at least 3, 1 and 1 are needed")
        if length < n_copied + 2:
            raise InputError(f"length = {length} has no room for a prompt and n_copied = {n_copied} tokens behind it")
        self.vocab_size, self.n_copied, self.n_prompts = vocabulary, n_copied, n_prompts
        self.prompt, self.n_answers = vocabulary - 1, vocabulary - 2

    @property
    def n_positions(self) -> int:
        """All but the last copied token, which is only ever a target."""
        return self.length + self.n_copied

    def make(self, draws: Draws, rows: int) -> Batch:
        """Examples in O(b l)."""
        tokens = 1 + draws.integers(self.n_answers, rows, self.length)
        places = np.sort(draws.integers(self.length - self.n_copied - 1, rows, self.n_prompts), axis=1)
        single = draws.integers(2, rows) == 0
        each = np.arange(rows)
        copied = np.stack([tokens[each, places[:, 0] + 1 + i] for i in range(self.n_copied)], axis=1)
        last = np.full(rows, -self.n_copied - 1)
        for number in range(self.n_prompts):
            place = places[:, number]
            placed = (place - last > self.n_copied) & ~(single & (number > 0))
            row, start = each[placed], place[placed]
            tokens[row, start] = self.prompt
            for i in range(self.n_copied):
                tokens[row, start + 1 + i] = copied[placed, i]
            last = np.where(placed, place, last)
        return next_tokens(np.concatenate([tokens, np.full((rows, 1), self.prompt), copied], axis=1))

    def solve(self, inputs: Int64[ndarray, "b l"]) -> Int64[ndarray, "b l"]:
        """Find the first prompt and read on."""
        start = (inputs == self.prompt).argmax(1)[:, None]
        copied = np.take_along_axis(inputs, start + 1 + np.arange(self.n_copied), axis=1)
        return answers_at(inputs, slice(-self.n_copied, None), copied)

    def record(self) -> dict[str, object]:
        """The arguments that say which examples there are."""
        return {**super().record(), "n_copied": self.n_copied, "n_prompts": self.n_prompts}
