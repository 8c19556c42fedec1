"""Which examples a step learns from: every one once in an epoch, in an order that the seed and the epoch decide.

Sequences of one batch are padded to the longest of them, so it pays to put such of similar length together: the order
of an epoch is cut into pools of several batches, each pool is sorted by length and cut into batches, and the batches of
all pools are put in a random order.  The last examples of an order that do not fill a batch wait for the next epoch.
"""

import numpy as np
from jaxtyping import Int64, Integer
from numpy import ndarray

from longreach.errors import InputError
from longreach.tasks.orders import random_order


class Epochs:
    """The examples of every step, a pure function of the step.

    Args:
        lengths: Length of every example.
        batch_size: Examples of a step.
        pool: Batches whose examples are sorted by length together; 1 sorts nothing.
        seed: Another seed, another order.
    """

    def __init__(self, lengths: Integer[ndarray, " n"], batch_size: int, pool: int, seed: int) -> None:
        if len(lengths) < batch_size:
            raise InputError(
                f"there are {len(lengths)} examples to learn from, fewer than batch_size = {batch_size}; lower it"
            )
        self.lengths, self.batch_size, self.pool, self.seed = lengths, batch_size, pool, seed
        self.steps = len(lengths) // batch_size
        """Steps of an epoch."""
        self._last: tuple[int, Int64[ndarray, "k b"]] | None = None

    def rows(self, step: int) -> Int64[ndarray, " b"]:
        """The examples of a step."""
        epoch, place = divmod(step, self.steps)
        if self._last is None or self._last[0] != epoch:
            self._last = epoch, self._batches(epoch)
        return self._last[1][place]

    def _batches(self, epoch: int) -> Int64[ndarray, "k b"]:
        """All batches of an epoch."""
        order = random_order(len(self.lengths), self.seed, "examples", epoch)[: self.steps * self.batch_size]
        if self.pool == 1:
            return order.reshape(-1, self.batch_size)
        size = self.pool * self.batch_size
        pools = [order[first : first + size] for first in range(0, len(order), size)]
        ordered = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        return ordered.reshape(-1, self.batch_size)[random_order(self.steps, self.seed, "batches", epoch)]
