"""Convolutions by FFT: safari's fftconv_ref, M2's two-sided filter, FlashFFTConv's partial, sparse and gated ones."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from adapters import Declined, Published, Tensors
from longreach.ops import long_conv, low_pass

Convolve = Callable[[Tensor, dict[str, nn.Parameter]], Tensor]


class Convolution(nn.Module):
    """An operator with its tensor arguments as parameters."""

    def __init__(self, convolve: Convolve, names: tuple[str, ...]) -> None:
        super().__init__()
        self.convolve = convolve
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.zeros(1)))

    def forward(self, u: Tensor) -> Tensor:
        """The operator with the arguments of this moment."""
        return self.convolve(u, dict(self.named_parameters()))


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for the operator that the source names."""
    source = metadata["source"]
    for marker, (names, make) in OPERATORS.items():
        if marker in source:
            return Published(Convolution(make(config), names), weights=dict, run=run)
    return Declined(f"no such convolution here: {source}")


def run(module: Convolution, tensors: Tensors) -> dict[str, Tensor]:
    """The output; the dropout mask that safari's function multiplies with at its end is applied here."""
    y = module(tensors["input"])
    return {"output": y * tensors["dropout_mask"][..., None] if "dropout_mask" in tensors else y}


def two_sided(reverse_lag: int) -> Callable[[dict[str, Any]], Convolve]:
    """Both filters, the reverse one beginning at the lag of this convention."""

    def make(config: dict[str, Any]) -> Convolve:
        return lambda u, p: long_conv(
            u, p["kernel"], reverse_kernel=p["kernel_rev"], reverse_lag=reverse_lag, skip=p["D"]
        )

    return make


def causal(config: dict[str, Any]) -> Convolve:
    """The filter and the skip, then a GELU where the options say so."""
    activation = gelu if config["gelu"] else nn.Identity()
    return lambda u, p: activation(long_conv(u, p["kernel"], skip=p["D"]))


def partial(config: dict[str, Any]) -> Convolve:
    """The first taps only."""
    return lambda u, p: long_conv(u, p["kernel"][:, : config["N_partial"]])


def sparse(config: dict[str, Any]) -> Convolve:
    """The low frequencies only; `N_partial` counts real numbers, two for each frequency."""
    length, keep = config["L"], config["N_partial"] // 2
    return lambda u, p: long_conv(u, low_pass(p["kernel"], length, keep), period=2 * length)


def gated(config: dict[str, Any]) -> Convolve:
    """Gates before and after a convolution that is circular in its transform's size."""
    return lambda u, p: long_conv(
        u, p["kernel"], gate_before=p["gate_in"], gate_after=p["gate_out"], period=config["fft_size"]
    )


OPERATORS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], Convolve]]] = {
    "fftconv_ref(k_rev=)": (("kernel", "kernel_rev", "D"), two_sided(0)),
    "HyenaFilter.forward bidirectional": (("kernel", "kernel_rev", "D"), two_sided(1)),
    "fftconv_ref": (("kernel", "D"), causal),
    "PartialFFTConv": (("kernel",), partial),
    "FrequencySparseFFTConv": (("kernel",), sparse),
    "pregate/postgate": (("kernel", "gate_in", "gate_out"), gated),
}
