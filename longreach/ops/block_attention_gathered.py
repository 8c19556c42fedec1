"""Block attention without the scores that no table lists: listed blocks of keys are gathered, a few rows at a time.

    forward    P = softmax(scale Q K^T)                y = P V                   log Z
    backward   dP = dy V^T        dS = P (dP - rowsum(P dP) + dlog Z)
               dV = P^T dy        dQ = scale dS K      dK = scale dS^T Q         summed over the rows that list a block

P is made again in the backward pass, so only the arguments are kept.  Everything is float32 or wider.

Axes: b batch, h query heads, g key-value heads, l queries, m keys, n blocks of queries, k listed blocks of keys, e and
f widths; c rows of the table at a time, w blocks listed in them; i a query of a block, j a key of its w blocks, which
lie end to end.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from longreach.ops.attention_mask import AttentionMask
from longreach.ops.differentiable_once import second_derivative_message

TILE = 2**20
"""About so many scores, of all heads, are held at a time."""
ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor key_blocks, "
    "bool causal, int? window, Tensor? key_mask, Tensor? query_segment, Tensor? key_segment, "
    "Tensor? query_position, Tensor? key_position, "  # AttentionMask
    "int block_size, int key_block_size, float scale"  # BlockOptions
)
N_INPUTS = 3


class BlockOptions(NamedTuple):
    """What is not a tensor."""

    block_size: int
    key_block_size: int
    scale: float


def gathered_attention(
    inputs: tuple[Float[Tensor, "..."], ...],
    key_blocks: Int[Tensor, "#b #h n k"],
    mask: AttentionMask,
    options: BlockOptions,
) -> tuple[Float[Tensor, "b h l f"], Float[Tensor, "b h l"]]:
    """y and log Z of query, key and value as longreach.ops.block_attention defines them; `mask` has positions."""
    return _forward(*inputs, key_blocks, *mask, *options)


@torch.library.custom_op(
    "longreach::block_attention", mutates_args=(), schema=f"({ARGUMENTS}) -> (Tensor output, Tensor log_total)"
)
def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    problem = _Problem(arguments)
    output, log_total = (padded.flatten(2, 3) for padded in problem.results())
    size = problem.options.block_size
    with torch.autocast(output.device.type, enabled=False):
        for rows, table in problem.rows():
            part = slice(rows.start * size, rows.stop * size)
            weights, logs, _, value, _ = problem.attend(rows, table)
            output[:, :, part], log_total[:, :, part] = (weights @ value).flatten(2, 3), logs.flatten(2, 3)
    length = arguments[0].shape[2]
    return output[:, :, :length].contiguous(), log_total[:, :, :length].contiguous()


@_forward.register_fake
def _allocate(*arguments: Any) -> tuple[Tensor, Tensor]:
    query, value = arguments[0], arguments[2]
    wide = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(*query.shape[:3], value.shape[3]), query.new_empty(*query.shape[:3], dtype=wide)


@torch.library.custom_op(
    "longreach::block_attention_gradients",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor log_grad, {ARGUMENTS}) -> (Tensor query, Tensor key, Tensor value)",
)
def _gradients(grad: Tensor, log_grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    problem = _Problem(arguments)
    with torch.autocast(grad.device.type, enabled=False):
        return problem.gradients(grad, log_grad)


@_gradients.register_fake
def _allocate_gradients(grad: Tensor, log_grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x) for x in arguments[:N_INPUTS])


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))
    ctx.options = [None if isinstance(x, Tensor) else x for x in inputs]


def _backward(ctx: Any, grad: Tensor, log_grad: Tensor) -> tuple[Tensor | None, ...]:
    pairs = zip(ctx.saved_tensors, ctx.options, strict=True)
    arguments = [option if tensor is None else tensor for tensor, option in pairs]
    return (*_gradients(grad, log_grad, *arguments), *[None] * (len(arguments) - N_INPUTS))


def _refuse_backward(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(second_derivative_message("block_attention"))


_forward.register_autograd(_backward, setup_context=_save_for_backward)
_gradients.register_autograd(_refuse_backward)


class _Problem:
    """The arguments of one call, cut into blocks."""

    def __init__(self, arguments: Sequence[Any]) -> None:
        self.inputs = arguments[:N_INPUTS]
        query, key, _ = self.inputs
        self.options = BlockOptions(*arguments[-len(BlockOptions._fields) :])
        self.mask = AttentionMask(*arguments[N_INPUTS + 1 : -len(BlockOptions._fields)])
        self.wide = torch.promote_types(query.dtype, torch.float32)
        self.n_keys, self.shape = key.shape[2], query.shape[:2]
        self.query = _blocks(query, self.options.block_size)  # (b, h, n, i, e)
        self.key, self.value = (_blocks(x, self.options.key_block_size) for x in self.inputs[1:])
        table = arguments[N_INPUTS]
        self.table = table.gather(-1, (table < 0).long().argsort(dim=-1, stable=True))  # what is listed comes first
        groups = torch.arange(key.shape[1], device=key.device).repeat_interleave(query.shape[1] // key.shape[1])
        rows = torch.arange(query.shape[0], device=key.device)
        self.first = (rows[:, None] * key.shape[1] + groups)[..., None, None] * self.key.shape[2]  # (b, h, 1, 1)

    def results(self) -> tuple[Tensor, Tensor]:
        """Room for y and log Z, as for queries that see nothing: (b, h, n, i, f) and (b, h, n, i)."""
        like, shape = self.query, self.query.shape[:-1]
        return like.new_zeros(*shape, self.value.shape[-1]), like.new_full(shape, -torch.inf, dtype=self.wide)

    def rows(self) -> Iterator[tuple[slice, Int[Tensor, "#b #h c w"]]]:
        """As many rows of the table at a time as fit into a tile, cut to the longest; none that list nothing."""
        counts = (self.table >= 0).sum(-1).amax((0, 1)).tolist()
        unit = self.shape.numel() * self.options.block_size * self.options.key_block_size
        start = 0
        while start < len(counts):
            stop, width = start + 1, counts[start]
            while stop < len(counts) and max(width, counts[stop]) * (stop + 1 - start) * unit <= TILE:
                width = max(width, counts[stop])
                stop += 1
            if width:
                yield slice(start, stop), self.table[:, :, start:stop, :width]
            start = stop

    def attend(self, rows: slice, table: Int[Tensor, "#b #h c w"]) -> tuple[Tensor, ...]:
        """Weights (b, h, c, i, j), log Z (b, h, c, i), gathered keys and values (b, h, c, j, e), and their places."""
        places = self.first + table.clamp(min=0)
        key, value = self.gather(self.key, places), self.gather(self.value, places)
        scores = (self.query[:, :, rows].to(self.wide) * self.options.scale) @ key.mT
        scores = scores.masked_fill_(~self.allowed(rows, table), -torch.inf)
        highest = scores.amax(-1, keepdim=True)
        blind = highest == -torch.inf
        weights = scores.sub_(highest.masked_fill_(blind, 0.0)).exp_()
        total = weights.sum(-1, keepdim=True)
        logs = (highest + total.log()).squeeze(-1)
        return weights.div_(total.masked_fill_(blind, 1.0)), logs, key, value, places

    def gather(self, blocks: Float[Tensor, "b g _ j e"], places: Int[Tensor, "b h c w"]) -> Float[Tensor, "b h c _ e"]:
        """The listed blocks, end to end and wide."""
        chosen = blocks.flatten(0, 2).flatten(1).index_select(0, places.flatten())
        return chosen.view(*places.shape[:3], -1, blocks.shape[-1]).to(self.wide)

    def allowed(self, rows: slice, table: Int[Tensor, "#b #h c w"]) -> Tensor:
        """Which of these queries may see which of their gathered keys, (#b, #h, c, i, j)."""
        mask, real = self.mask, torch.ones(1, self.n_keys, dtype=torch.bool, device=table.device)
        real = self.of_keys(real if mask.key_mask is None else mask.key_mask, table)
        real = real & (table >= 0).repeat_interleave(self.options.key_block_size, -1)
        pairs = [(mask.query_segment, mask.key_segment), (mask.query_position, mask.key_position)]
        of_keys = [None if key is None else self.of_keys(key, table) for _, key in pairs]
        of_queries = [
            None if query is None else _blocks(query[:, None, :, None], self.options.block_size)[:, :, rows, :, 0]
            for query, _ in pairs
        ]
        found = [x for x in (*of_keys, *of_queries, real) if x is not None]
        lead = torch.broadcast_shapes(*(x.shape[:3] for x in found))
        flat = [
            None if x is None else x.expand(*lead, -1).flatten(0, 2)
            for x in (real, of_queries[0], of_keys[0], of_queries[1], of_keys[1])
        ]
        return AttentionMask(mask.causal, mask.window, *flat).allowed().unflatten(0, lead)

    def of_keys(self, x: Tensor, table: Int[Tensor, "#b #h c w"]) -> Tensor:
        """A property (#b, m) of keys for the gathered ones, (#b, #h, c, j)."""
        blocks = _blocks(x[..., None], self.options.key_block_size).squeeze(-1)
        row = torch.arange(len(x), device=x.device)[:, None, None, None]
        return blocks[row, table.clamp(min=0)].flatten(-2)

    def gradients(self, grad: Tensor, log_grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of query, key and value."""
        grad, log_grad = (_blocks(x, self.options.block_size).to(self.wide) for x in (grad, log_grad[..., None]))
        sums = [torch.zeros_like(x, dtype=self.wide) for x in (self.query, self.key, self.value)]
        flat = [x.flatten(0, 2).flatten(1) for x in sums[1:]]
        for rows, table in self.rows():
            weights, logs, key, value, places = self.attend(rows, table)
            output_grad, query = grad[:, :, rows], self.query[:, :, rows].to(self.wide)
            weight_grad = output_grad @ value.mT
            shift = log_grad[:, :, rows].masked_fill((logs == -torch.inf)[..., None], 0.0)
            shift = shift - (weights * weight_grad).sum(-1, keepdim=True)
            score_grad = weight_grad.add_(shift).mul_(weights).mul_(self.options.scale)
            sums[0][:, :, rows] = score_grad @ key
            for total, part in zip(flat, (score_grad.mT @ query, weights.mT @ output_grad), strict=True):
                total.index_add_(0, places.flatten(), part.reshape(places.numel(), -1))
        joined = [total.flatten(2, 3)[:, :, : x.shape[2]] for total, x in zip(sums, self.inputs, strict=True)]
        return tuple(total.to(x.dtype, copy=True) for total, x in zip(joined, self.inputs, strict=True))  # type: ignore[return-value]


def _blocks(x: Tensor, size: int) -> Tensor:
    """Cut axis -2 into blocks, filling the last one up with zeros: (..., l, e) -> (..., n, size, e)."""
    return F.pad(x, (0, 0, 0, -x.shape[-2] % size)).unflatten(-2, (-1, size)).contiguous()
