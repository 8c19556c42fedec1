"""The implicit long filters of Hyena (Poli et al. 2023, https://arxiv.org/abs/2302.10866, section 3.3 and appendix D).

A filter is not a table of taps but a small network of the position, so that its number of parameters does not depend on
its length.  At position n of L, with t = n / (L - 1):

    z(n) = [t, cos(f_1 w), ..., -sin(f_1 w), ...]          w = 2 pi n / L,   f_1 .. f_m from 1e-4 to m - 1
    s(n) = sin(F (W_i sin(F (... W_0 z(n) + b_0)) + b_i))  a network with sines, whose frequencies F are learned
    h(n) = (W s(n)) (exp(-t |decay|) + shift)              modulated by an exponential window for each filter

Time is measured in lengths of the whole filter: the first n taps are the same, however many of them are asked for.
Instead of s, the networks of CKConv and FlexConv can draw the filters (longreach.mixers.kernel_network), which Hyena's
paper compares with its own.  A two-sided filter has a second network, with the same frequencies, for the taps that look
into the future (Monarch Mixer, https://arxiv.org/abs/2310.12109).

Axes: n taps, e position features, w width of the network, o filters of a channel, d channels, c = o d.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers.base import OptimHint
from longreach.mixers.kernel_network import KernelOptions, make_network
from longreach.ops.piecewise import piecewise

PIECE = 2**15
"""Longer filters are drawn so many taps at a time, and again for the gradient: a network keeps 7 w numbers of each."""

_SIZE = 6**-0.5
"""Of the taps that another network than Hyena's draws at the start: that of Hyena's, about."""


@dataclass(frozen=True)
class FilterOptions:
    """What an implicit filter looks like and how it is trained; in parentheses the name in the published code.

    The defaults are those of the paper's language models.

    Attributes:
        network: `hyena` is s of the module's docstring; `sine` is CKConv's and `magnet` FlexConv's, with this width,
            n_inner_layers and sine_frequency, and no features.
        width: width of the network (filter_order).
        embedding_dim: number of position features, 1 + 2 m with m frequency bands (emb_dim); more of them let the
            filter start with higher frequencies.
        n_inner_layers: layers between the first and the last one (num_inner_mlps).
        sine_frequency: initial frequency of the sines (w).
        modulate: multiply with the exponential window (modulate).
        shift: what the window never falls below (shift).
        fast_decay: part of the length after which the fastest window has fallen to `target` (fast_decay_pct).
        slow_decay: the same for the slowest (slow_decay_pct); the others lie between.
        target: see `fast_decay` (target).
        decay_order: to which filters the rates go, slow to fast, where a channel has several: `interleaved` gives
            those of one channel neighbouring rates (safari), `stacked` gives each of them its own part of the range
            (the standalone files of Hyena and HyenaDNA).
        normalise: divide each tap by the sum of its absolute values over all filters (normalized).
        skip: add the input of a convolution, scaled for each filter, to its output (bias).
        lr: learning rate of the network instead of that of the run (lr).
        weight_decay: let the weights of the network decay like others (wd; Monarch Mixer).
        features_lr: learning rate of the position features, 0 for features that stay what they are (lr_pos_emb).
        decay_lr: learning rate of the decay rates, 0 for rates that stay what they are (modulation_lr).
    """

    network: Literal["hyena", "sine", "magnet"] = "hyena"
    width: int = 64
    embedding_dim: int = 33
    n_inner_layers: int = 2
    sine_frequency: float = 14.0
    modulate: bool = True
    shift: float = 0.0
    fast_decay: float = 0.3
    slow_decay: float = 1.5
    target: float = 1e-2
    decay_order: Literal["interleaved", "stacked"] = "interleaved"
    normalise: bool = False
    skip: bool = True
    lr: float | None = None
    weight_decay: bool = False
    features_lr: float = 1e-5
    decay_lr: float = 0.0


class ImplicitFilter(nn.Module):
    """`n_filters` filters for each of `d_model` channels.

    Args:
        d_model: number of channels.
        n_filters: filters of a channel.
        length: number of taps, the unit in which the network measures time.
        options: everything else.
        two_sided: have taps that look into the future too, given by `future`.
    """

    features: Tensor  # (n, e), if the network is Hyena's
    decay: Tensor  # (c,), if there is modulation

    def __init__(
        self, d_model: int, *, n_filters: int, length: int, options: FilterOptions, two_sided: bool = False
    ) -> None:
        super().__init__()
        if options.embedding_dim < 3 or options.embedding_dim % 2 == 0:
            raise InputError(
                f"filter.embedding_dim={options.embedding_dim}: there is one feature for time and two for each band, "
                "so it is odd and at least 3"
            )
        if length < 1 or options.n_inner_layers < 0:
            raise InputError(f"a filter has taps and no negative number of layers; got {length=}, {options}")
        self.length, self.n_filters, self.options = length, n_filters, options
        if options.network == "hyena":
            # not nn.Linear: autocast must not round them, and a model's general initialisation must not touch them
            self.weights, self.biases, self.output = self._network(d_model)
            if two_sided:
                self.future_weights, self.future_biases, self.future_output = self._network(d_model)
            self.frequency = nn.Parameter(torch.full((options.width,), float(options.sine_frequency)))
            self._hold("features", position_features(length, options.embedding_dim), options.features_lr)
        else:
            kernel = KernelOptions(
                options.network,
                width=options.width,
                n_layers=options.n_inner_layers + 2,
                frequency=options.sine_frequency,
            )
            self.network = make_network(n_filters * d_model, kernel, size=_SIZE)
            if two_sided:
                self.future_network = make_network(n_filters * d_model, kernel, size=_SIZE)
        if options.modulate:
            self._hold("decay", _decay_rates(d_model, n_filters, options), options.decay_lr)

    def _network(self, d_model: int) -> tuple[nn.ParameterList, nn.ParameterList, nn.Parameter]:
        options = self.options
        widths = [options.embedding_dim] + [options.width] * (options.n_inner_layers + 1)
        weights = nn.ParameterList(_uniform(b, a, fan_in=a) for a, b in itertools.pairwise(widths))
        biases = nn.ParameterList(_uniform(b, fan_in=a) for a, b in itertools.pairwise(widths))
        return weights, biases, nn.Parameter(_uniform(self.n_filters * d_model, options.width, fan_in=options.width))

    def _hold(self, name: str, value: Tensor, lr: float) -> None:
        """Keep a tensor as a parameter if it is trained, as a buffer if not; the state dict has it either way."""
        value = value.to(torch.get_default_dtype())
        if lr:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def optim_hints(self) -> dict[str, OptimHint]:
        """As published: learning rates of their own, and no weight decay but that of the network if it is wanted."""
        rates = {"features": self.options.features_lr, "decay": self.options.decay_lr}
        return {
            name: OptimHint(
                lr=rates.get(name, self.options.lr), weight_decay=name not in rates and self.options.weight_decay
            )
            for name, _ in self.named_parameters()
        }

    def forward(self, count: int) -> Float[Tensor, "o d {count}"]:
        """The first `count` taps, in float32 or wider, O(count (w^2 + w c)); memory O(count (e + c))."""
        if self.options.network != "hyena":
            return self._taps(count, self.network)
        return self._taps(count, partial(self._sines, self.weights, self.biases, self.output))

    def future(self, count: int) -> Float[Tensor, "o d {count}"]:
        """The same of the taps that look into the future, from the next position on; of a two-sided filter only."""
        if self.options.network != "hyena":
            return self._taps(count, self.future_network)
        network = self.future_weights, self.future_biases, self.future_output
        return self._taps(count, partial(self._sines, *network))

    def refuse_longer(self, length: int, mixer: str) -> None:
        """Raise InputError if there are fewer taps than positions; `mixer` is the name of whose filter this is."""
        if length > self.length:
            raise InputError(
                f"a sequence of {length} positions is longer than the filters of this {mixer}, which have "
                f"max_length={self.length} taps; build and train it with a larger max_length, or read less"
            )

    def _taps(self, count: int, draw: Callable[[Tensor], Tensor]) -> Float[Tensor, "o d {count}"]:
        """What a network draws, modulated and normalised, without autocast; long filters in pieces."""
        if count > self.length:
            raise InputError(f"the filter has {self.length} taps, not {count}; build it with length={count} or more")
        parameter = next(self.parameters())
        if self.options.network == "hyena":
            places = self.features[:count]
        else:  # positions run from 1 to -1
            position = torch.arange(count, dtype=torch.float64, device=parameter.device)
            places = (1 - 2 / max(self.length - 1, 1) * position).to(parameter.dtype)
        time = torch.arange(count, device=parameter.device)
        with torch.autocast(parameter.device.type, enabled=False):
            shape, parameters = partial(self._shape, draw), list(self.parameters())
            taps = piecewise(shape, [places, time], parameters, PIECE, cut=0)
        return taps.unflatten(0, (self.n_filters, -1))

    def _shape(self, draw: Callable[[Tensor], Tensor], places: Tensor, time: Tensor) -> Tensor:
        """What a network draws from its inputs at some places, modulated and normalised, (c, n)."""
        taps = draw(places)
        if self.options.modulate:
            taps = taps * self._window(time)
        return taps / taps.abs().sum(0) if self.options.normalise else taps

    def _sines(self, weights: nn.ParameterList, biases: nn.ParameterList, output: Tensor, features: Tensor) -> Tensor:
        """Hyena's network, (c, n)."""
        s = features
        for weight, bias in zip(weights, biases, strict=True):
            s = torch.addmm(self.frequency * bias, s, (self.frequency[:, None] * weight).mT).sin()
        return output @ s.mT

    def window(self, count: int) -> Float[Tensor, "c {count}"]:
        """exp(-t |decay|) + shift at the first positions."""
        return self._window(torch.arange(count, device=self.decay.device))

    def _window(self, position: Tensor) -> Tensor:
        time = position.to(self.decay.dtype) / max(self.length - 1, 1)
        window = (-self.decay.abs()[:, None] * time).exp()
        return window + self.options.shift if self.options.shift else window


def _uniform(*shape: int, fan_in: int) -> Tensor:
    """As torch initialises the weights and biases of a linear map."""
    return torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5)


def position_features(length: int, embedding_dim: int) -> Float[Tensor, "{length} {embedding_dim}"]:
    """z(0) .. z(length - 1), in float64."""
    bands = (embedding_dim - 1) // 2
    position = torch.arange(length, dtype=torch.float64)
    time = position / max(length - 1, 1)
    frequencies = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64)
    angle = (2 * math.pi / length) * position[:, None] * frequencies
    return torch.cat([time[:, None], angle.cos(), -angle.sin()], dim=1)


def _decay_rates(d_model: int, n_filters: int, options: FilterOptions) -> Float[Tensor, " c"]:
    """Rates from slow to fast: a window with rate r has fallen to `target` at t = -ln(target) / r."""
    slowest, fastest = (-math.log(options.target) / part for part in (options.slow_decay, options.fast_decay))
    rates = torch.linspace(slowest, fastest, n_filters * d_model, dtype=torch.float64)
    if options.decay_order == "interleaved":
        rates = rates.view(d_model, n_filters).mT.flatten()
    return rates
