"""Full attention and the encoders around it, block patterns, sorting and hashing.

The files do not say how wide the model is.  Nothing depends on it but the shapes of weights, which the test replaces:
ours is built as wide as all heads together.
"""

from typing import Any

from torch import Tensor

from adapters import Published, Tensors
from adapters.lra import Table, merging, output_at_real_positions, projection
from longreach.mixers import Attention


def projected(theirs: Tensors) -> dict[str, Tensor]:
    """Our two linear maps."""
    return {"qkv.weight": projection(theirs, "query", "key", "value"), "out.weight": merging(theirs)}


def full(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """Flax's SelfAttention."""
    mixer = Attention(config["qkv_features"], n_heads=config["num_heads"], position="none", causal=False)
    return Published(mixer, projected, output_at_real_positions)


TABLE: Table = {"SelfAttention": full}
