"""What a position of a sequence is, on disk and for a model.

Axes: b batch, l length, f features of a position.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64, Integer, Shaped
from numpy import ndarray
from torch import Tensor


@dataclass(frozen=True)
class TokenEncoding:
    """A position is a token, from 0 to less than `vocab_size`; all of them are data, none stands for padding."""

    vocab_size: int

    @property
    def size(self) -> int:
        """What a model is built for."""
        return self.vocab_size

    @property
    def dtype(self) -> np.dtype:
        """The smallest stored type."""
        return np.min_scalar_type(self.vocab_size - 1).newbyteorder("<")

    def __call__(self, values: Integer[ndarray, "*b l"]) -> Int64[Tensor, "*b l"]:
        """Tokens as int64."""
        return torch.from_numpy(values.astype(np.int64))


@dataclass(frozen=True)
class FeatureEncoding:
    """A position is a vector of `size` features, (stored - mean) / std as float32."""

    size: int = 1
    mean: float = 0.0
    std: float = 1.0
    stored: str = "u1"
    """The stored type, as NumPy names it."""

    @property
    def dtype(self) -> np.dtype:
        """The stored type."""
        return np.dtype(self.stored).newbyteorder("<")

    def __call__(self, values: Shaped[ndarray, "*b l f"]) -> Float32[Tensor, "*b l f"]:
        """Features as float32."""
        return (torch.from_numpy(values.astype(np.float32)) - self.mean) / self.std
