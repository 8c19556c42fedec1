"""A stack of residual blocks around any sequence mixers.  It is itself a SequenceMixer, with the same three views.

    split   x + mixer(norm x), then x + channel_mixer(norm x)        the Transformer block
    joint   x + channel_mixer(mixer(norm x))                         the S4 block

With `norm_position="post"` each branch is norm(x + branch(x)) instead.  A mixer that `normalises_itself` gets x, not
norm(x).

Axes: b batch, l length (absent in a step), d model width.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, TypeVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer, State
from longreach.mixers.norms import Norm, apply_norm, make_norm
from longreach.ops.piecewise import piecewise

PIECE = 2**14
"""Longer sequences pass the channel mixers so many positions at a time where nothing has to be kept of them."""

MixerFactory = Callable[[int], SequenceMixer]
"""Builds a mixer of the given width."""
ChannelMixerFactory = Callable[[int], nn.Module]
"""Builds a channel mixer of the given width."""
Layout = Literal["split", "joint"]
NormPosition = Literal["pre", "post"]
T = TypeVar("T")


class Block(nn.Module):
    """One layer: a sequence mixer, a channel mixer, their norms and residual connections."""

    def __init__(
        self,
        mixer: SequenceMixer,
        channel_mixer: nn.Module,
        *,
        layout: Layout = "split",
        norm: Norm = "layer",
        norm_position: NormPosition = "pre",
        dropout: float = 0.0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self.channel_mixer = channel_mixer
        self.pre = norm_position == "pre"
        outside = not (self.pre and mixer.normalises_itself)
        self.norm = make_norm(norm, mixer.d_model) if outside else nn.Identity()
        self.channel_norm = make_norm(norm, mixer.d_model) if layout == "split" else None
        self.dropout = nn.Dropout(dropout)
        self.recompute, self.by_position = recompute, norm != "batch"

    def forward(
        self,
        x: Float[Tensor, "b *l d"],
        mix: Callable[[Tensor], tuple[Tensor, T]],
        mask: Bool[Tensor, "b *l"] | None = None,
    ) -> tuple[Float[Tensor, "b *l d"], T]:
        """The layer with `mix` as its sequence mixing, so that one definition serves all three views."""
        y, state = mix(apply_norm(self.norm, x, mask) if self.pre else x)
        if self.channel_norm is None:
            y = self._in_pieces(self.channel_mixer, y, self.channel_mixer)
        x = self._add(x, y, self.norm, mask)
        if self.channel_norm is not None:
            branch = partial(self._channel_branch, norm=self.channel_norm, mask=None if self.by_position else mask)
            x = self._in_pieces(branch, x, self.channel_mixer, self.channel_norm)
        return x, state

    def _channel_branch(self, x: Tensor, norm: nn.Module, mask: Tensor | None) -> Tensor:
        """The second branch of the split layout and its residual connection."""
        y = self.channel_mixer(apply_norm(norm, x, mask) if self.pre else x)
        return self._add(x, y, norm, mask)

    def _in_pieces(self, function: Callable[[Tensor], Tensor], x: Tensor, *modules: nn.Module) -> Tensor:
        """A function of x and `modules` that treats every position by itself, in pieces if nothing has to be kept."""
        if x.ndim < 3 or not self.by_position or (torch.is_grad_enabled() and not self.recompute):
            return function(x)
        return piecewise(function, [x], [p for module in modules for p in module.parameters()], PIECE)

    def _add(self, x: Tensor, branch: Tensor, norm: nn.Module, mask: Tensor | None) -> Tensor:
        x = x + self.dropout(branch)
        return x if self.pre else apply_norm(norm, x, mask)


class BackboneState(NamedTuple):
    """The states of all layers."""

    layers: tuple[State, ...]


class Backbone(SequenceMixer[BackboneState]):
    """A stack of blocks and, where they normalise their input, a final norm.

    Args:
        d_model: width of the residual stream.
        n_layers: number of blocks.
        mixers: sequence mixers, repeated in this order over the layers, so that a hybrid is a list:
            `[Hyena, Hyena, Attention]` with 6 layers has attention at layers 3 and 6.
        channel_mixer: the map between the mixers.
        layout: `split` for two residual branches a block, `joint` for one.
        norm: the kind of norm, see longreach.mixers.norms.
        norm_position: `pre` normalises the input of a branch, `post` the sum after it.
        dropout: probability of dropping a channel of a branch's output.
        final_norm: normalise what leaves the last block, where blocks normalise their input.
        recompute: keep only the input of every block for the backward pass and compute the rest again, which
            divides the memory of training by about the number of tensors in a block and costs one more forward pass.
            Sequences of more than PIECE positions pass the channel mixers in pieces, which costs these another one.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_layers: int,
        mixers: list[MixerFactory],
        channel_mixer: ChannelMixerFactory,
        layout: Layout = "split",
        norm: Norm = "layer",
        norm_position: NormPosition = "pre",
        dropout: float = 0.0,
        final_norm: bool = True,
        recompute: bool = False,
    ) -> None:
        if n_layers < 1 or not mixers:
            raise InputError(f"a backbone needs a layer and a mixer; got n_layers={n_layers}, {len(mixers)} mixers")
        blocks = [
            Block(
                mixers[i % len(mixers)](d_model),
                channel_mixer(d_model),
                layout=layout,
                norm=norm,
                norm_position=norm_position,
                dropout=dropout,
                recompute=recompute,
            )
            for i in range(n_layers)
        ]
        super().__init__(d_model, causal=all(block.mixer.causal for block in blocks))
        self.blocks = cast("list[Block]", nn.ModuleList(blocks))
        self.norm = make_norm(norm, d_model) if norm_position == "pre" and final_norm else None
        self.recompute = recompute
        lengths = [block.mixer.max_length for block in blocks if block.mixer.max_length is not None]
        self.max_length = min(lengths, default=None)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """All layers, on the whole sequence."""
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = cast(Tensor, checkpoint(_whole_sequence, block, x, mask, use_reentrant=False))
            else:
                x = _whole_sequence(block, x, mask)
        return self._finish(x, mask)

    def init_state(self, batch_size: int) -> BackboneState:
        """Every layer at its beginning."""
        return BackboneState(tuple(block.mixer.init_state(batch_size) for block in self.blocks))

    def step(self, x: Float[Tensor, "b d"], state: BackboneState) -> tuple[Float[Tensor, "b d"], BackboneState]:
        """All layers, on one position."""
        after: list[State] = []
        for block, before in zip(self.blocks, state.layers, strict=True):
            x, new = block(x, partial(block.mixer.step, state=before))
            after.append(new)
        return self._finish(x, None), BackboneState(tuple(after))

    def prefill(
        self, x: Float[Tensor, "b l d"], state: BackboneState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], BackboneState]:
        """All layers, on a chunk."""
        after: list[State] = []
        for block, before in zip(self.blocks, state.layers, strict=True):
            x, new = block(x, partial(block.mixer.prefill, state=before, mask=mask), mask)
            after.append(new)
        return self._finish(x, mask), BackboneState(tuple(after))

    def _finish(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x if self.norm is None else apply_norm(self.norm, x, mask)


def _whole_sequence(block: Block, x: Tensor, mask: Tensor | None) -> Tensor:
    """One layer in its parallel view."""
    y, _ = block(x, lambda u: (block.mixer(u, mask), None), mask)
    return y
