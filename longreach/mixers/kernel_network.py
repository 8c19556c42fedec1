"""Small networks that draw a convolution kernel: taps as functions of the position, as many as are asked for.

Positions run from 1, the present, to -1, the farthest past.  With a the activation, W = g v / ||v|| (weight_norm):

    sine              h = sin(F (W h + b))                                   SIREN, as in CKConv
    relu, ...         h = a(norm(W h + b))
    random_fourier    h = [cos, sin](f x + b), then the relu network         f normal with deviation 2 pi F
    magnet            h = g_0(x), then h = g_i(x) (W h + b)                  multiplicative Gabor network, FlexConv
                      g_i(x) = exp(-(gamma (x - mu))^2 / 2) sin(w x + c)     1 / gamma is the width of a window
    taps = W h + b

The last layer starts so that the taps have the root mean square that is asked for.  A convolution with k taps of size
k^-1/2 keeps the variance of white noise, and no norm has to follow it.

CKConv: Romero et al. 2021, https://arxiv.org/abs/2102.02611.  FlexConv: Romero et al. 2021, https://arxiv.org/abs/2110.08059.

Axes: n positions, c taps at each position, w width, a inputs of a layer, b outputs of a layer.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError


@dataclass(frozen=True)
class KernelOptions:
    """What draws a kernel; in parentheses the names in the published code.

    Attributes:
        network: see the module's docstring (activation_function, kernel_type).
        width: width of the network (hidden_channels).
        n_layers: number of linear maps, at least 2; of a magnet, the number of products (no_layers).
        frequency: F, how fast the taps may change: of the sines (omega_0), of the random frequencies, or the scale of a
            magnet's frequencies (input_scale).
        norm: between the layers of relu and its like: `batch` over the positions, `layer` over positions and width
            (norm_type).
        weight_norm: store the weights as directions and gains.
    """

    network: Literal["sine", "relu", "leaky_relu", "swish", "random_fourier", "magnet"] = "sine"
    width: int = 32
    n_layers: int = 3
    frequency: float = 30.0
    norm: Literal["none", "batch", "layer"] = "none"
    weight_norm: bool = True


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "swish": F.silu,
    "sine": torch.sin,
    "random_fourier": F.relu,
}


class Perceptron(nn.Module):
    """All the networks but magnet: linear maps with an activation between them.

    Args:
        n_outputs: taps at each position.
        options: what the network looks like.
        bias: add a trained constant in every layer.
    """

    def __init__(self, n_outputs: int, options: KernelOptions, *, bias: bool = True) -> None:
        super().__init__()
        fourier = options.network == "random_fourier"
        if options.n_layers < 2 + fourier or options.width < 1 or (fourier and options.width % 2):
            raise InputError(
                f"n_layers={options.n_layers}, width={options.width}: a {options.network} network has at least "
                f"{2 + fourier} layers{' and an even width' if fourier else ''}"
            )
        if options.norm != "none" and options.network in ("sine", "random_fourier"):
            raise InputError(
                f"norm={options.norm!r}: a {options.network} network has none; choose relu, leaky_relu, swish"
            )
        self.options = options
        widths = [1] + [options.width] * (options.n_layers - 1) + [n_outputs]
        if fourier:
            scale = 2 * math.pi * options.frequency
            self.frequencies = nn.Parameter(scale * torch.randn(options.width // 2))
            self.phases = nn.Parameter(torch.empty(options.width // 2).uniform_(-1, 1))
            widths = widths[1:]
        layers = _start(widths, options)
        self.weights = nn.ParameterList(weight for weight, _ in layers)
        self.gains = nn.ParameterList(weight.norm(dim=1) for weight, _ in layers) if options.weight_norm else None
        self.biases = nn.ParameterList(constant for _, constant in layers) if bias else None
        kinds = {"none": nn.Identity, "batch": nn.BatchNorm1d, "layer": _LayerNorm}
        self.norms = nn.ModuleList(kinds[options.norm](options.width) for _ in layers[1:])

    def forward(self, position: Float[Tensor, " n"]) -> Float[Tensor, "c n"]:
        """The taps at these positions, O(n (w^2 + w c))."""
        h, activation = position[:, None], ACTIVATIONS[self.options.network]
        if self.options.network == "random_fourier":
            angle = torch.addcmul(self.phases, h, self.frequencies)
            h = torch.cat([angle.cos(), angle.sin()], dim=1)
        for i, norm in enumerate(self.norms):
            h = F.linear(h, self._weight(i), None if self.biases is None else self.biases[i])
            h = activation(self.options.frequency * h if self.options.network == "sine" else norm(h))
        taps = self._weight(-1) @ h.mT
        return taps if self.biases is None else taps + self.biases[-1][:, None]

    def scale_output(self, factor: Float[Tensor, ""]) -> None:
        """Multiply the weights of the last layer."""
        (self.weights if self.gains is None else self.gains)[-1].mul_(factor)

    def _weight(self, i: int) -> Float[Tensor, "b a"]:
        weight = self.weights[i]
        if self.gains is None:
            return weight
        return self.gains[i][:, None] * weight / weight.norm(dim=1, keepdim=True)


class Magnet(nn.Module):
    """Multiplicative anisotropic Gabor network: products of sines in windows, whose bandwidths are known.

    Args:
        n_outputs: taps at each position.
        options: what the network looks like.
        bias: add a trained constant in every linear map.
        extent: the windows start in this part of the positions, next to the present.
    """

    def __init__(
        self,
        n_outputs: int,
        options: KernelOptions,
        *,
        bias: bool = True,
        extent: float = 1.0,
    ) -> None:
        super().__init__()
        if options.n_layers < 1 or options.width < 1 or options.norm != "none":
            raise InputError(
                f"n_layers={options.n_layers}, width={options.width}, norm={options.norm!r}: a magnet has a layer and "
                "no norm"
            )
        width, n_filters = options.width, options.n_layers + 1
        shape = (n_filters, width)
        self.centre = nn.Parameter(1 - 2 * extent * torch.rand(shape))
        shapes = (6.0 / torch.arange(1, n_filters + 1))[:, None].expand(shape)
        self.sharpness = nn.Parameter(torch.distributions.Gamma(shapes, 1.0).sample())
        scale = options.frequency / n_filters**0.5
        self.frequency = nn.Parameter(scale * self.sharpness.detach() * torch.empty(shape).uniform_(-1, 1))
        self.phase = nn.Parameter(torch.empty(shape).uniform_(-math.pi, math.pi))
        self.weights = nn.ParameterList(_uniform(width, width, bound=width**-0.5) for _ in range(options.n_layers))
        self.biases = nn.ParameterList(torch.zeros(width) for _ in range(options.n_layers)) if bias else None
        self.output = nn.Parameter(_uniform(n_outputs, width, bound=1.0))
        self.output_bias = nn.Parameter(torch.zeros(n_outputs)) if bias else None

    def forward(self, position: Float[Tensor, " n"]) -> Float[Tensor, "c n"]:
        """The taps at these positions, O(n (w^2 + w c))."""
        h, *factors = [self._filter(i, position) for i in range(len(self.centre))]
        for i, factor in enumerate(factors):
            h = factor * F.linear(h, self.weights[i], None if self.biases is None else self.biases[i])
        taps = self.output @ h.mT
        return taps if self.output_bias is None else taps + self.output_bias[:, None]

    def scale_output(self, factor: Float[Tensor, ""]) -> None:
        """Multiply the weights of the last map."""
        self.output.mul_(factor)

    def _filter(self, i: int, position: Float[Tensor, " n"]) -> Float[Tensor, "n w"]:
        window = (-0.5 * (self.sharpness[i] * (position[:, None] - self.centre[i])).square()).exp()
        return window * torch.addcmul(self.phase[i], position[:, None], self.frequency[i]).sin()

    def bandwidths(self, deviations: float = 2.0) -> Float[Tensor, " filters"]:
        """The highest frequency of each factor, in periods per unit of position; of the product they add up.

        The spectrum of a window is a Gaussian around the frequency of its sine; it is cut off after `deviations`.
        """
        angular = self.frequency.abs() + deviations * self.sharpness.abs()
        return angular.amax(dim=1) / (2 * math.pi)


def make_network(
    n_outputs: int, options: KernelOptions, *, size: float = 1.0, bias: bool = True, extent: float = 1.0
) -> Perceptron | Magnet:
    """The network that the options name.

    Its taps start with the root mean square `size` over the part `extent` of the positions that is next to the present.
    """
    if options.network == "magnet":
        network = Magnet(n_outputs, options, bias=bias, extent=extent)
    else:
        network = Perceptron(n_outputs, options, bias=bias)
    with torch.no_grad():
        taps = network.eval()(torch.linspace(1 - 2 * extent, 1, 256))
        network.train().scale_output(size / taps.square().mean().sqrt().clamp(min=1e-4))
    return network


class _LayerNorm(nn.Module):
    """Over positions and width together, with a gain and a constant for each of the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, h: Float[Tensor, "n w"]) -> Float[Tensor, "n w"]:
        return F.group_norm(h.mT[None], 1, self.weight, self.bias, eps=1e-12)[0].mT


def _start(widths: list[int], options: KernelOptions) -> list[tuple[Tensor, Tensor]]:
    """Weights and constants of all layers.

    Sines start as SIREN does.  The units of relu and its like bend at positions that are equally spaced, those of one
    layer as those of the next: the paper's start, which the published code loses to its weight norm.
    """
    layers = []
    n_knots = options.width
    h = torch.linspace(-1, 1, n_knots)[:, None]  # what enters a layer at these positions
    *hidden, (a, b) = itertools.pairwise(widths)
    for i, (inputs, outputs) in enumerate(hidden):
        if options.network == "sine":
            weight = _uniform(outputs, inputs, bound=1.0 if i == 0 else (6 / inputs) ** 0.5 / options.frequency)
            constant = _uniform(outputs, bound=1.0)
        elif options.network == "random_fourier":
            weight, constant = _uniform(outputs, inputs, bound=inputs**-0.5), _uniform(outputs, bound=inputs**-0.5)
        else:
            weight = _uniform(outputs, inputs, bound=(6 / inputs) ** 0.5)
            constant = -(h @ weight.mT).diagonal().clone()
            h = ACTIVATIONS[options.network](h @ weight.mT + constant)
        layers.append((weight, constant))
    return [*layers, (_uniform(b, a, bound=1.0), torch.zeros(b))]


def _uniform(*shape: int, bound: float) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound)
