"""RWKV as a whole: the stack of time and channel mixing, in versions 4 to 7, and the language model around it.

    x = norm_0(E[tokens])
    x = x + time_l(norm x),  then  x + channel_l(norm x)              every layer l; a last norm
    v = v + (v_0 - v) sigmoid(b + x^value V_1 V_2)                    version 7: the values of layers after the first

    LanguageModel(256, RWKV(512, n_layers=12, version=7))             or RWKVLanguageModel, which starts as published

Version 4: https://arxiv.org/abs/2305.13048; 5 and 6: https://arxiv.org/abs/2404.05892; 7:
https://arxiv.org/abs/2503.14456.

Axes: b batch, l length, d model width, v vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longreach.errors import InputError
from longreach.mixers.base import OptimHint, SequenceMixer, State
from longreach.mixers.rwkv4 import RWKV4
from longreach.mixers.rwkv5 import RWKV5
from longreach.mixers.rwkv6 import RWKV6
from longreach.mixers.rwkv7 import RWKV7
from longreach.mixers.rwkv_channel_mix import RWKVChannelMix, RWKVChannelMixState
from longreach.mixers.rwkv_memory import RWKVState
from longreach.mixers.rwkv_start import low_rank, spread
from longreach.models.language_model import LanguageModel

Version = Literal[4, 5, 6, 7]
TIME_MIXING: dict[int, tuple[Callable[..., SequenceMixer], tuple[str, ...]]] = {
    4: (RWKV4, ()),
    5: (RWKV5, ("d_attention", "head_dim", "divisor")),
    6: (RWKV6, ("d_attention", "head_dim", "divisor", "share_rank", "decay_rank")),
    7: (RWKV7, ("head_dim", "decay_rank", "rate_rank", "gate_rank")),
}
"""Version -> its class, and the options that it takes."""


@dataclass(frozen=True)
class RWKVOptions:
    """Sizes inside the layers; None is as published.  An option that the version does not know is refused.

    Attributes:
        d_inner: width inside the channel mixing: 4 d (4, 7), or 3.5 d rounded down to a multiple of 32 (5, 6).
        d_attention: width inside the time mixing (5, 6): d.
        head_dim: channels of a head (5, 6, 7): 64.
        divisor: what outputs are divided by before their norm (5, 6): 8.
        share_rank: rank of the maps to the shares (6).
        decay_rank: rank of the map to the decays (6, 7).
        rate_rank: rank of the map to the rates (7).
        gate_rank: rank of the map to the gate (7).
        value_rank: rank of the map that mixes in the first layer's values (7): about 1.7 sqrt(d), a multiple of 32.
    """

    d_inner: int | None = None
    d_attention: int | None = None
    head_dim: int | None = None
    divisor: float | None = None
    share_rank: int | None = None
    decay_rank: int | None = None
    rate_rank: int | None = None
    gate_rank: int | None = None
    value_rank: int | None = None

    def of_time_mixing(self, version: Version) -> dict[str, int | float]:
        """The arguments that are set for the time mixing of a version."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        known = {"d_inner", *TIME_MIXING[version][1], *(["value_rank"] if version == 7 else [])}
        if wrong := sorted(set(given) - known):
            raise InputError(f"RWKV version {version} has no {', '.join(wrong)}; it takes {', '.join(sorted(known))}")
        return {name: value for name, value in given.items() if name in TIME_MIXING[version][1]}


class ValueResidual(nn.Module):
    """Mixes the values of a layer with those of the first."""

    def __init__(self, d_model: int, rank: int | None) -> None:
        super().__init__()
        self.start = nn.Parameter(0.73 - 0.4 * (spread(d_model) - 0.5))
        self.down, self.up = low_rank(d_model, rank, 1.7)

    def forward(
        self, value: Float[Tensor, "b l d"], source: Float[Tensor, "b l d"], first: Float[Tensor, "b l d"]
    ) -> Float[Tensor, "b l d"]:
        """`source` is what `value` was made from, `first` are the values of the first layer."""
        return torch.lerp(value, first, torch.sigmoid(self.start + source @ self.down @ self.up).to(value.dtype))


class LayerState(NamedTuple):
    """The states of both halves."""

    time: State
    channel: RWKVChannelMixState


class RWKVLayer(nn.Module):
    """Two residual branches."""

    def __init__(self, time: SequenceMixer, channel: RWKVChannelMix, value_residual: ValueResidual | None) -> None:
        super().__init__()
        self.norm, self.channel_norm = nn.LayerNorm(time.d_model), nn.LayerNorm(time.d_model)
        self.time, self.channel, self.value_residual = time, channel, value_residual

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        state: LayerState,
        mask: Bool[Tensor, "b l"] | None,
        first: Float[Tensor, "b l d"] | None,
    ) -> tuple[Float[Tensor, "b l d"], LayerState, Float[Tensor, "b l d"] | None]:
        """The layer after `state`; `first` are the values of the first layer, None in that layer itself."""
        if isinstance(self.time, RWKV7):
            values: list[Tensor] = []

            def revise(value: Tensor, source: Tensor) -> Tensor:
                values.append(value)
                return value if self.value_residual is None else self.value_residual(value, source, first)

            y, time = self.time.mix(self.norm(x), cast(RWKVState, state.time), mask, revise)
            first = values[0] if first is None else first
        else:
            y, time = self.time.prefill(self.norm(x), state.time, mask)
        x = x + y
        y, channel = self.channel.prefill(self.channel_norm(x), state.channel, mask)
        return x + y, LayerState(time, channel), first


class RWKVStackState(NamedTuple):
    """The states of all layers."""

    layers: tuple[LayerState, ...]


class RWKV(SequenceMixer[RWKVStackState]):
    """The layers of RWKV between two norms.

    Args:
        d_model: width of the residual stream.
        n_layers: number of layers, each a time mixing and a channel mixing.
        version: of RWKV.
        channel_first: the first layer has a second channel mixing in place of its time mixing (RWKV-ffnPre); the
            first layer of version 7 must have values, so that one refuses.
        options: sizes inside the layers.
        recompute: keep only the input of every layer for the backward pass and compute the rest again.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_layers: int,
        version: Version = 7,
        channel_first: bool = False,
        options: RWKVOptions = RWKVOptions(),
        recompute: bool = False,
    ) -> None:
        super().__init__(d_model, causal=True)
        if n_layers < 1 or (channel_first and version == 7):
            raise InputError(f"RWKV: {n_layers=}, {version=}, {channel_first=}; needs a layer, and version 7 values")
        inner = options.d_inner or (4 * d_model if version in (4, 7) else max(32, int(3.5 * d_model) // 32 * 32))
        time_class, _ = TIME_MIXING[version]
        layers = []
        for i in range(n_layers):
            channel = RWKVChannelMix(d_model, d_inner=inner, gated=version != 7, layer=i, n_layers=n_layers)
            if i == 0 and channel_first:
                time = RWKVChannelMix(d_model, d_inner=inner, layer=0, n_layers=n_layers)
            else:
                time = time_class(d_model, layer=i, n_layers=n_layers, **options.of_time_mixing(version))
            residual = ValueResidual(d_model, options.value_rank) if version == 7 and i > 0 else None
            layers.append(RWKVLayer(time, channel, residual))
        self.first_norm, self.norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.layers = cast("list[RWKVLayer]", nn.ModuleList(layers))
        self.version, self.recompute = version, recompute
        self.optim_hints = {
            f"layers.{i}.value_residual.{name}": OptimHint(weight_decay=False)
            for i, layer in enumerate(layers)
            if layer.value_residual is not None
            for name in ("down", "up")
        }

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """All layers, on the whole sequence."""
        return self.prefill(x, self.init_state(x.shape[0]), mask)[0]

    def init_state(self, batch_size: int) -> RWKVStackState:
        """Every layer at its beginning."""
        return RWKVStackState(
            tuple(
                LayerState(layer.time.init_state(batch_size), layer.channel.init_state(batch_size))
                for layer in self.layers
            )
        )

    def step(self, x: Float[Tensor, "b d"], state: RWKVStackState) -> tuple[Float[Tensor, "b d"], RWKVStackState]:
        """All layers, on one position."""
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state

    def prefill(
        self, x: Float[Tensor, "b l d"], state: RWKVStackState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], RWKVStackState]:
        """All layers, on a chunk."""
        x, first, after = self.first_norm(x), None, []
        for layer, before in zip(self.layers, state.layers, strict=True):
            if self.recompute and torch.is_grad_enabled():
                x, new, first = checkpoint(layer, x, before, mask, first, use_reentrant=False)
            else:
                x, new, first = layer(x, before, mask, first)
            after.append(new)
        return self.norm(x), RWKVStackState(tuple(after))


class RWKVLanguageModel(LanguageModel):
    """A language model that starts, and is trained, as the published ones are.

    The embedding starts next to zero (the first norm brings it to scale), the head orthogonal.  While it trains, every
    loss has `logit_penalty / 2` times the square of the largest logit added to it, which keeps logits from drifting.

    Args:
        vocab_size: number of tokens.
        backbone: the layers.
        logit_penalty: see above; 1e-4 as published, 0 for none.
    """

    def __init__(self, vocab_size: int, backbone: RWKV, *, logit_penalty: float = 1e-4) -> None:
        if logit_penalty < 0:
            raise InputError(f"logit_penalty={logit_penalty} must not be negative; 0 is none")
        super().__init__(vocab_size, backbone, tied=False)
        self.logit_penalty = logit_penalty

    def token_losses(
        self, tokens: Int[Tensor, "b l"], targets: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l"]:
        """The cross-entropy of every target in nats (and the penalty, while training); 0 where the target is -100."""
        hidden = self.hidden(tokens, mask)
        losses = self._losses(hidden, targets)
        if not self.training or self.logit_penalty == 0:
            return losses
        largest = largest_logits(hidden, self._output_weight()).to(losses.dtype)
        return losses + self.logit_penalty / 2 * largest.square() * (targets != -100)

    def _initialise(self, std: float) -> None:
        head = cast(nn.Linear, self.head).weight
        nn.init.uniform_(self.embedding.weight, -1e-4, 1e-4)
        nn.init.orthogonal_(head, 0.5 * max(1.0, head.shape[0] / head.shape[1]) ** 0.5)


def largest_logits(hidden: Float[Tensor, "b l d"], weight: Float[Tensor, "v d"]) -> Float[Tensor, "b l"]:
    """The greatest of the logits of every position, without holding those of more than a few positions at once."""
    with torch.no_grad():
        rows = max(1, (1 << 22) // len(weight))
        winners = torch.cat([(h @ weight.mT).argmax(-1) for h in hidden.flatten(0, 1).split(rows)])
    return (hidden * weight[winners].view_as(hidden)).sum(-1)
