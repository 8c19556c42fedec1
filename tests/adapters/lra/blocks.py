"""Full attention, block patterns, sorting and hashing.

The files do not say how wide the model is.  Nothing depends on it but the shapes of weights, which the test replaces:
ours is built as wide as all heads together.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters import Declined, Published, Tensors
from adapters.lra import Table, merging, output_at_real_positions, projection, real_positions
from longreach.mixers import Attention, BigBird, LocalAttention, Longformer, SparseAttention, SparseOptions
from longreach.mixers.reformer import lsh_buckets
from longreach.ops import block_attention, merge_attention


def projected(theirs: Tensors) -> dict[str, Tensor]:
    """Our two linear maps."""
    return {"qkv.weight": projection(theirs, "query", "key", "value"), "out.weight": merging(theirs)}


def heads(config: dict[str, Any]) -> dict[str, Any]:
    """What all of our mixers are told."""
    return {"d_model": config["qkv_features"], "n_heads": config["num_heads"], "position": "none"}


def full(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """Flax's SelfAttention."""
    mixer = Attention(**heads(config), causal=False)
    return Published(mixer, projected, output_at_real_positions)


def local(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """Attention within contiguous blocks, as the paper describes it."""
    mixer = LocalAttention(**heads(config), block_size=config["block_size"], causal=False)
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


def longformer(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """LongformerAttention; its maps for global positions exist even if there are none."""
    places, causal = tuple(config.get("global_positions") or ()), config.get("causal_mask", False)
    mixer = Longformer(**heads(config), window=config["sliding_window_size"], global_positions=places, causal=causal)
    names = ("query", "key", "value")

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        near = projection(theirs, *(f"{name}_sliding_window" for name in names))
        far = projection(theirs, *(f"{name}_global" for name in names))
        ours = {"qkv.weight": near, "out.weight": merging(theirs)}
        return ours | ({"qkv_global.weight": far} if places else {})

    return Published(mixer, weights, output_at_real_positions)


class DrawnBlocks(BigBird):
    """Ours with random blocks that were drawn elsewhere, (h, n - 2, r) for the blocks 1 .. n - 2."""

    drawn: Tensor

    def random_blocks(self, n: int, last: Tensor) -> Tensor:
        """Those that were drawn."""
        return F.pad(self.drawn, (0, 0, 1, 1))[None]


def bigbird(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """BigBirdAttention, which adds zeros at the end and takes them for real."""
    size = config["block_size"]
    mixer = DrawnBlocks(**heads(config), block_size=size, n_random=config["num_rand_blocks"])

    def run(mixer: Any, tensors: Tensors) -> dict[str, Tensor]:
        mixer.drawn, mask = tensors["rand_blocks"], tensors["padding_mask_valid"].bool()
        added = size - mask.shape[1] % size
        x, real = F.pad(tensors["input"], (0, 0, 0, added)), F.pad(mask, (0, added), value=True)
        position = torch.arange(x.shape[1])[None]
        y = mixer._attend(*mixer._project(x, position), real, torch.tensor([x.shape[1] // size - 1]))
        y = mixer._merge(y, position)[:, : mask.shape[1]]
        return {"output": y.masked_fill(~mask[..., None], 0.0)}

    return Published(mixer, projected, run)


UNLIMITED = 2**30
"""A stride or a window that no sequence is as long as."""


def sparse(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """A union of the published patterns, written as "Name(block 4, c 2) | Name(...)"."""
    patterns = {
        name: [int(number) for number in re.findall(r"\d+", sizes)]
        for name, sizes in re.findall(r"(Fixed1|Fixed2|Local|Strided|All)(?:Pattern)?(\([^)]*\))?", config["patterns"])
    }
    names, token = set(patterns), config.get("use_cls_token", False)
    if names <= {"Fixed1", "Fixed2"} and "Fixed1" in names:
        block, *other = patterns["Fixed1"]
        _, n_summary = patterns.get("Fixed2", (block, 0))
        if other or patterns.get("Fixed2", [block])[0] != block:
            return Declined("blocks of two sizes: a scheme has one")
        options = SparseOptions(n_summary=n_summary, summarise_first="Fixed2" in names, class_token=token)
        mixer = SparseAttention(**heads(config), stride=block, options=options)
    elif names <= {"Local", "Strided"} or names == {"All"}:
        (window,) = patterns.get("Local", [1 if "Strided" in names else UNLIMITED])
        (stride,) = patterns.get("Strided", [UNLIMITED])
        options = SparseOptions(window=window, class_token=token)
        mixer = SparseAttention(**heads(config), pattern="strided", stride=stride, options=options)
    else:
        return Declined(f"{config['patterns']}: a mixture of two schemes, or the second half of one")

    def run(mixer: Any, tensors: Tensors) -> dict[str, Tensor]:
        results = output_at_real_positions(mixer, tensors)
        if "sparse_mask" in tensors:
            results["sparse_mask"] = pattern_of(mixer, tensors["sparse_mask"].shape[-1]).to(
                tensors["sparse_mask"].dtype
            )
        return results

    return Published(mixer, projected, run)


def pattern_of(mixer: SparseAttention, length: int) -> Tensor:
    """Who sees whom, (1, 1, l, l)."""
    position = torch.arange(length)
    return (mixer._visible(position[None, :, None], position[None, None]) & (position[:, None] >= position))[None]


def sinkhorn(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """SinkhornAttention, whose blocks hold every n-th position, and which sees the sum of all blocks beside its own."""
    if len(set(config["lengths"])) > 1:
        return Declined("padding: the published mask is laid over other positions than those that are padded")
    if config.get("sort_activation", "softmax") == "sinkhorn":
        return Declined("sort_activation=sinkhorn: heads and blocks are mixed up by a reshape; nothing is sorted")
    size = config["block_size"]
    mixer = LocalAttention(**heads(config), block_size=size, causal=False)

    def run(mixer: Any, tensors: Tensors) -> dict[str, Tensor]:
        assert real_positions(tensors).all()
        x = regroup(tensors["input"], size)
        position = torch.arange(x.shape[1])[None]
        query, key, value = mixer._project(x, position)
        everything = (x.unflatten(2, (-1, size)).sum(2) for x in (key, value))
        table = torch.zeros(1, 1, x.shape[1] // size, 1, dtype=torch.int64)
        mixture, _ = block_attention(query, *everything, table, size)
        y = mixer._merge(mixer._mix(query, key, value, None) + mixture, position)
        return {"output": regroup(y, y.shape[1] // size)}

    unsorted = "rows of what it sorts by are made to sum to 1, and only their sum is used: it has no effect"
    return Published(mixer, projected, run, unchecked={"param/DenseGeneral_0.kernel": unsorted})


def reformer(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """ReformerAttention, put together from our hash and our block attention: it differs from the paper in all of this.

    Zeros are added and hashed; keys are not normalised; scores are multiplied with sqrt(e); buckets are no limit; all
    rounds are sorted together and cut into n_buckets chunks each, the first of which sees the last one; there is no
    output projection, and the heads end up in the axis of positions.
    """
    chunk, n_heads, n_chunks = config["chunk_len"], config["num_heads"], config["n_hashes"] * config["n_buckets"]
    module = nn.ModuleDict({name: nn.Linear(config["input_dim"], 1, bias=False) for name in ("query", "value")})

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        return {f"{name}.weight": projection(theirs, name) for name in module}

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        x, length = tensors["input"], tensors["input"].shape[1]
        x = F.pad(x, (0, 0, 0, chunk - length % chunk))
        query, value = (module[name](x).unflatten(-1, (n_heads, -1)).transpose(1, 2) for name in ("query", "value"))
        rotations = tensors["rotations"].movedim(0, 1)[:, None].expand(-1, n_heads, -1, -1)
        buckets = lsh_buckets(query, rotations) + config["n_buckets"] * torch.arange(config["n_hashes"])[:, None]
        order = buckets.flatten(2).argsort(dim=-1, stable=True)
        query, value = (in_order(x.repeat(1, 1, config["n_hashes"], 1), order) for x in (query, value))
        table = (torch.arange(n_chunks)[:, None] - torch.arange(2)) % n_chunks
        size, scale = query.shape[2] // n_chunks, query.shape[3] ** 0.5
        y, log_total = block_attention(query, query, value, table[None, None], size, scale=scale)
        back = order.argsort(-1)
        rounds = (in_order(x, back).chunk(config["n_hashes"], dim=2) for x in (y, log_total[..., None]))
        y, _ = merge_attention(*((y, log[..., 0]) for y, log in zip(*rounds, strict=True)))
        return {"output": y.reshape(*x.shape)[:, :length]}

    return Published(module, weights, run)


def in_order(x: Tensor, order: Tensor) -> Tensor:
    """The positions of x (b, h, l, e) in the order (b, h, l)."""
    return x.gather(2, order[..., None].expand(-1, -1, -1, x.shape[-1]))


TABLE: Table = {
    "BigBirdAttention": bigbird,
    "SelfAttention": full,
    "block-local attention": local,
    "LocalAttention": strided,
    "ReformerAttention": reformer,
    "SinkhornAttention": sinkhorn,
    "SparseAttention": sparse,
    "LongformerAttention": longformer,
}
