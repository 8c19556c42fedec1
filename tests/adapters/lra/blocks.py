"""Full attention and the encoders around it, block patterns, sorting and hashing.

The files do not say how wide the model is.  Nothing depends on it but the shapes of weights, which the test replaces:
ours is built as wide as all heads together.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from adapters import Declined, Published, Tensors
from adapters.lra import Table, merging, output_at_real_positions, projection, real_positions
from longreach.mixers import Attention, LocalAttention


def projected(theirs: Tensors) -> dict[str, Tensor]:
    """Our two linear maps."""
    return {"qkv.weight": projection(theirs, "query", "key", "value"), "out.weight": merging(theirs)}


def full(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """Flax's SelfAttention."""
    mixer = Attention(config["qkv_features"], n_heads=config["num_heads"], position="none", causal=False)
    return Published(mixer, projected, output_at_real_positions)


def local(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """Attention within contiguous blocks, as the paper describes it."""
    mixer = LocalAttention(
        config["qkv_features"], n_heads=config["num_heads"], block_size=config["block_size"], causal=False
    )
    return Published(mixer, projected, output_at_real_positions)


def strided(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Attention within blocks as published: a block holds every n-th position, with zeros added at the end."""
    if len(set(config["lengths"])) > 1:
        return Declined("padding: the published mask is laid over other positions than those that are padded")
    published, size = local(config, metadata), config["block_size"]

    def run(mixer: Any, tensors: Tensors) -> dict[str, Tensor]:
        x = tensors["input"]
        assert real_positions(tensors).all()
        x = F.pad(x, (0, 0, 0, size - x.shape[1] % size))
        y = mixer(regroup(x, size))
        return {"output": regroup(y, y.shape[1] // size)[:, : tensors["input"].shape[1]]}

    return Published(published.module, published.weights, run)


def regroup(x: Tensor, size: int) -> Tensor:
    """Put every (l / size)-th position next to each other; its inverse is itself with l / size."""
    return x.unflatten(1, (size, -1)).transpose(1, 2).flatten(1, 2)


TABLE: Table = {
    "SelfAttention": full,
    "block-local attention": local,
    "LocalAttention": strided,
}
