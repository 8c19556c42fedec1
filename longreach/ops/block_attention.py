"""Softmax attention of blocks of queries to the blocks of keys that a table lists; its cost follows the table.

    n_ij      = how often the row of query i's block lists key j's block, or 0 where `mask` does not let i see j
    weight_ij = n_ij exp(scale q_i . k_j) / Z_i        Z_i = sum_j n_ij exp(scale q_i . k_j)
    y_i       = sum_j weight_ij v_j                    and log Z_i, with which results over several sets are merged:

    y = sum_p Z^p y^p / sum_p Z^p                      the softmax over the union of disjoint sets p of keys

This is what local, sparse, windowed, sorted and hashed attention have in common (Child et al. 2019,
https://arxiv.org/abs/1904.10509, Zaheer et al. 2020, https://arxiv.org/abs/2007.14062).

Axes: b batch, h query heads, g key-value heads (g divides h), l queries, m keys, n blocks of queries, k listed blocks
of keys, e query and key width, f value width.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.ops.attention_mask import NO_MASK, AttentionMask
from longreach.ops.backend import op
from longreach.ops.block_attention_gathered import BlockOptions, gathered_attention


@op
def block_attention(
    query: Float[Tensor, "b h l e"],
    key: Float[Tensor, "b g m e"],
    value: Float[Tensor, "b g m f"],
    key_blocks: Int[Tensor, "#b #h n k"],
    block_size: int,
    mask: AttentionMask = NO_MASK,
    *,
    key_block_size: int | None = None,
    scale: float | None = None,
) -> tuple[Float[Tensor, "b h l f"], Float[Tensor, "b h l"]]:
    """Attend from every block of `block_size` queries to the blocks of `key_block_size` keys that its row lists.

    An entry of -1 lists nothing; last blocks may be short.  `key_block_size` defaults to `block_size`, `scale` to
    e^-1/2.  Returns y, 0 for a query that sees nothing, and log Z in float32 or wider, -inf there.
    The reference, which this is, is dense: O(l m) time and memory; differentiable any number of times.
    """
    key_block_size = block_size if key_block_size is None else key_block_size
    _check(query, key, value, key_blocks, mask, block_size, key_block_size)
    (l, e), m = query.shape[2:], key.shape[2]
    located = mask.located(l, m, query.device)
    listed = key_blocks.new_zeros(*key_blocks.shape[:3], -(-m // key_block_size))
    listed = listed.scatter_add(-1, key_blocks.clamp(min=0), (key_blocks >= 0).to(listed.dtype))
    listed = listed.repeat_interleave(block_size, 2)[:, :, :l].repeat_interleave(key_block_size, 3)[..., :m]
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = (query * (e**-0.5 if scale is None else scale)) @ key.mT
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores + (listed * located.allowed()[:, None]).to(scores.dtype).log()
    blind = (scores == -torch.inf).all(-1)
    weights = scores.masked_fill(blind[..., None], 0.0)
    y = weights.softmax(-1).masked_fill(blind[..., None], 0.0).to(value.dtype) @ value
    return y, weights.logsumexp(-1).masked_fill(blind, -torch.inf)


def _check(
    query: Tensor, key: Tensor, value: Tensor, key_blocks: Tensor, mask: AttentionMask, rows: int, columns: int
) -> None:
    """Raise InputError for arguments that no backend can make sense of."""
    mask.check()
    (b, h, l, e), (_, g, m, _) = query.shape, key.shape
    if key.shape != (b, g, m, e) or value.shape[:3] != key.shape[:3] or h % g:
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        raise InputError(
            "query, key, value must be (b, h, l, e), (b, g, m, e), (b, g, m, f) with g a divisor of h; "
            f"they are {shapes}"
        )
    if rows < 1 or columns < 1:
        raise InputError(f"block_size={rows} and key_block_size={columns} must be at least 1")
    n, limit = -(-l // rows), -(-m // columns)
    if key_blocks.shape[0] not in (1, b) or key_blocks.shape[1] not in (1, h) or key_blocks.shape[2] != n:
        raise InputError(
            f"key_blocks must be (1 or {b}, 1 or {h}, {n}, k), with a row for every block of {rows} of the {l} "
            f"queries; it is {tuple(key_blocks.shape)}"
        )
    if not key_blocks.is_cuda and key_blocks.numel() and not torch.compiler.is_compiling():
        low, high = key_blocks.aminmax()
        if low < -1 or high >= limit:
            raise InputError(f"key_blocks lists blocks {int(low)} .. {int(high)}; there are 0 .. {limit - 1}, and -1")


@block_attention.backend("gathered")
def _gathered(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_blocks: Tensor,
    block_size: int,
    mask: AttentionMask = NO_MASK,
    *,
    key_block_size: int | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """O(l k key_block_size) time, O(l + m) memory (longreach.ops.block_attention_gathered); first derivatives only."""
    key_block_size = block_size if key_block_size is None else key_block_size
    _check(query, key, value, key_blocks, mask, block_size, key_block_size)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    located = mask.located(query.shape[2], key.shape[2], query.device)
    options = BlockOptions(block_size, key_block_size, factor)
    return gathered_attention((query, key, value), key_blocks, located, options)


def band_of_blocks(
    n: int, before: int, after: int = 0, *, n_keys: int | None = None, device: torch.device | None = None
) -> Int[Tensor, "1 1 n k"]:
    """The table in which block i lists the blocks i - before .. i + after that exist, of `n_keys` (the default: n)."""
    last = (n if n_keys is None else n_keys) - 1
    before, after = min(before, n - 1), min(after, last)
    listed = torch.arange(n, device=device)[:, None] + torch.arange(-before, after + 1, device=device)
    return torch.where((listed >= 0) & (listed <= last), listed, -1)[None, None]


def merge_attention(
    *parts: tuple[Float[Tensor, "b h l f"], Float[Tensor, "b h l"]],
) -> tuple[Float[Tensor, "b h l f"], Float[Tensor, "b h l"]]:
    """Attention over the union of sets of keys from (y, log Z) over each; a key in several sets counts in each."""
    outputs, logs = torch.stack([y for y, _ in parts]), torch.stack([log for _, log in parts])
    highest = logs.detach().amax(0)
    blind = highest == -torch.inf
    highest = highest.masked_fill(blind, 0.0)
    weights = (logs - highest).exp()
    total = weights.sum(0).masked_fill(blind, 1.0)
    y = (weights[..., None] * outputs).sum(0) / total[..., None]
    return y.to(outputs.dtype), (highest + total.log()).masked_fill(blind, -torch.inf)


def columns(x: Shaped[Tensor, "b h l e"], n: int) -> Shaped[Tensor, "bn h _ e"]:
    """Every n-th position as a sequence of its own, of n in a row; the last ones are filled up with zeros."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % n)).unflatten(2, (-1, n)).permute(0, 3, 1, 2, 4).flatten(0, 1)


def rows(x: Shaped[Tensor, "bn h _ e"], n: int, length: int) -> Shaped[Tensor, "b h {length} e"]:
    """The inverse of `columns`."""
    return x.unflatten(0, (-1, n)).permute(0, 2, 3, 1, 4).flatten(2, 3)[:, :, :length]
