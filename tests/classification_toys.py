"""Small classification tasks whose answers are known, and models that are known to be right or ignorant."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from longreach.tasks import Classification, Example, FeatureEncoding, Loading, TokenEncoding

SIZES = {"train": 70, "validation": 20, "test": 10}


class MajorityTask(Classification):
    """Which of three tokens is the most frequent?  Lengths differ; label 0 is the most frequent one.

    Args:
        features: positions are vectors (two bytes) instead of tokens.
        pair: examples have two sequences, of which only the second tells the label.
        root: folder of the cache.
    """

    n_classes = 3

    def __init__(
        self, root: Path, *, features: bool = False, pair: bool = False, loading: Loading | None = None
    ) -> None:
        super().__init__(loading or Loading(batch_size=8, pool=2, cache=root))
        self.encoding = FeatureEncoding(2, mean=1.0, std=0.5) if features else TokenEncoding(3)
        self.sequences = 2 if pair else 1
        self.state, self.read = "", 0

    def settings(self) -> dict[str, object]:
        """The options."""
        return {"sequences": self.sequences, "size": self.encoding.size}

    def fingerprint(self) -> str:
        """Changed by tests."""
        return self.state

    def examples(self) -> Iterator[Example]:
        """Drawn with a fixed seed."""
        self.read += 1
        draw = np.random.Generator(np.random.PCG64(1))
        for part, size in SIZES.items():
            for _ in range(size):
                label = int(draw.choice(3, p=[0.5, 0.3, 0.2]))
                sequences = [self._sequence(draw, label) for _ in range(self.sequences)]
                if self.sequences == 2:
                    sequences[0] = self._sequence(draw, int(draw.integers(3)))
                yield Example(part, sequences, label)

    def _sequence(self, draw: np.random.Generator, label: int) -> np.ndarray:
        n = int(draw.integers(1, 6))
        others = draw.integers(3, size=n - 1)
        tokens = draw.permutation(np.concatenate([np.full(n, label), others]))
        return np.stack([tokens, tokens + 1], axis=-1) if isinstance(self.encoding, FeatureEncoding) else tokens


class Oracle(nn.Module):
    """Counts."""

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """How often each token is there; in the second sequence, where there are two."""
        features = inputs.is_floating_point()
        tokens = (inputs[..., 0] * 0.5 + 1.0).round().long() if features else inputs
        hits = nn.functional.one_hot(tokens, 3).double()
        if mask is not None:
            hits = hits * mask[..., None]
        return hits.sum(-2)[:, 1] if tokens.ndim == 3 else hits.sum(-2)


class Constant(nn.Module):
    """Always says the same."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """One for the label."""
        return nn.functional.one_hot(inputs.new_full((len(inputs),), self.label).long(), 3).double()
