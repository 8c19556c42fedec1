"""safari's long convolutions: the layer, its kernel, how the kernel starts, and H3 with such kernels.

    LongConv                    src/models/sequence/long_conv.py           convolution, activation, linear map
    LongConvKernel              src/models/sequence/long_conv_kernel.py    the kernel alone
    _parameter_initialization   the same                                   the envelope of the start
    H3Conv                      src/models/sequence/h3_conv.py             two convolutions between gates

Several published `channels` of H features are a mixer of ours with channels * H features, feature c H + h in the place
of (c, h).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adapters import Declined, Published, Tensors
from adapters.s4d import ACTIVATIONS
from longreach.mixers import LongConv
from longreach.mixers.long_conv import decays


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published class and options."""
    if config.get("use_ma_smoothing") and config.get("ma_window_len", 7) % 2 == 0:
        return Declined("ma_window_len: an even window moves the kernel by one tap, or its spectrum by one bin")
    if config.get("use_ma_smoothing") and config.get("smooth_freq") and taps_of(config) % 2:
        return Declined("smooth_freq: the published code drops the last of an odd number of taps")
    if config.get("use_ma_smoothing") and not config.get("causal", True):
        return Declined("smoothing of a kernel with causal=False mixes the farthest past with the farthest future")
    published_class = metadata["source"].rpartition(":")[2]
    adapters = {
        "LongConv": layer,
        "LongConvKernel": kernel,
        "_parameter_initialization": envelope,
        "H3Conv": gated,
    }
    return adapters[published_class](config)


def taps_of(config: dict[str, Any]) -> int:
    """The published kernel length, which has two names."""
    return config["L"] if "H" in config else config.get("l_max", 1024)


def build(config: dict[str, Any], features: int, *, causal: bool = True) -> LongConv:
    """Our mixer of the options that all the published classes hand to their kernels."""
    smoothing = "frequency" if config.get("smooth_freq") else "time"
    return LongConv(
        features,
        kernel_length=taps_of(config),
        init={"random": "random", "double_exp": "exponential"}[config.get("weight_init", "random")],
        threshold=config.get("lam", 0.1),
        smoothing=smoothing if config.get("use_ma_smoothing") else "none",
        smoothing_width=config.get("ma_window_len", 7),
        causal=causal,
        dropout=float(config.get("kernel_dropout", 0.0)),
        lr=config.get("learning_rate"),
    )


class OutputLayer(nn.Module):
    """What published layers do to the output of a convolution: activation, and a linear map with another."""

    def __init__(self, features: int, width: int, activation: str | None, final: str | None) -> None:
        super().__init__()
        self.activation, self.final = ACTIVATIONS[activation], ACTIVATIONS[final]
        self.linear = nn.Linear(features, (2 if final == "glu" else 1) * width)

    def forward(self, y: Tensor) -> Tensor:
        """Applied to (b, l, features)."""
        return self.final(self.linear(self.activation(y)))


def linear_weights(theirs: Tensors, prefix: str) -> dict[str, Tensor]:
    """The linear map of an OutputLayer, which may have been stored as gain and direction."""
    if f"{prefix}.weight" in theirs:
        weight = theirs[f"{prefix}.weight"]
    else:
        gain, direction = theirs[f"{prefix}.weight_g"], theirs[f"{prefix}.weight_v"]
        weight = gain * direction / direction.norm(dim=1, keepdim=True)
    return {"output.linear.weight": weight, "output.linear.bias": theirs[f"{prefix}.bias"]}


def lengths_mask(x: Tensor, tensors: Tensors) -> Tensor | None:
    """The published `lengths` as a mask."""
    if "lengths" not in tensors:
        return None
    return (torch.arange(x.shape[1]) < tensors["lengths"][:, None]).expand(len(x), -1)


def layer(config: dict[str, Any]) -> Published | Declined:
    """The layer: convolution, skip connection, activation and, unless postact is None, a linear map."""
    if config.get("block_fft_conv"):
        return Declined(
            "block_fft_conv: needs CUDA, computes in complex64, and is wrong unless lengths are powers of 2"
        )
    causal = config.get("causal", True)
    if not causal and config.get("bidirectional"):
        return Declined("bidirectional with causal=False: the two halves of each kernel wrap around the other's")
    if config.get("L", taps_of(config)) + 1 < taps_of(config):
        return Declined("an input shorter than the kernel: the published code wraps the kernel into the future")
    channels, width = config.get("channels", 1), config["d_model"]
    features = channels * width
    mixer = build(config, features, causal=causal and not config.get("bidirectional", False))
    module = nn.ModuleDict({"conv": mixer})
    final = config.get("postact", "glu")
    activation = config.get("activation", "gelu")
    if final is not None:
        module["output"] = OutputLayer(features, width, activation, final)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        taps = theirs["kernel.kernel"]
        if not causal:  # 2 L taps, of which the second half counts back from lag -1
            past, future = taps.chunk(2, dim=-1)
            taps = torch.cat([past, future.flip(-1)])
        ours = {"conv.kernel": taps.view(mixer.kernel.shape), "conv.skip": theirs["D"].flatten()}
        return ours if final is None else ours | linear_weights(theirs, "output_linear.0")

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        transposed = config.get("transposed", True)
        x = tensors["input"].mT if transposed else tensors["input"]
        mask = lengths_mask(x, tensors)
        y = module["conv"](x.repeat(1, 1, channels), mask)
        y = ACTIVATIONS[activation](y) if final is None else module["output"](y)
        results = {"output": y.mT if transposed else y}
        if "kernel" in tensors and causal:
            kernels = module["conv"].kernels(mixer.taps)
            results["kernel"] = kernels.unflatten(1, (channels, -1)).flatten(0, 1)
        return results

    unchecked = {} if causal else {"kernel": "both directions in one"}
    return Published(module, weights, run, unchecked=unchecked)


def kernel(config: dict[str, Any]) -> Published:
    """The kernel alone: `channels` kernels for each of H features."""
    shape = (config.get("channels", 1), config["H"])
    length = taps_of(config) * (1 if config.get("causal", True) else 2)
    mixer = build(config | {"L": length}, shape[0] * shape[1])

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        return {"kernel": theirs["kernel"].view(mixer.kernel.shape), "skip": torch.zeros(shape[0] * shape[1]).double()}

    def run(mixer: LongConv, tensors: Tensors) -> dict[str, Tensor]:
        return {"output": mixer.kernels(mixer.taps).view(*shape, -1)}

    return Published(mixer, weights, run)


class Envelope(nn.Module):
    """How the kernel starts, without its noise."""

    def __init__(self, envelope: Callable[[], Tensor]) -> None:
        super().__init__()
        self.envelope = envelope


def envelope(config: dict[str, Any]) -> Published | Declined:
    """The published scale of every tap at the start, computed in float32."""
    if config.get("weight_init", "random") == "random":
        return Declined("random taps have no envelope")

    def run(module: Envelope, tensors: Tensors) -> dict[str, Tensor]:
        return {"output": module.envelope().to(tensors["output"].dtype)}

    return Published(Envelope(lambda: decays(config["H"], config["L"])), lambda theirs: {}, run)


def gated(config: dict[str, Any]) -> Published | Declined:
    """H3 whose two systems are long convolutions."""
    if config.get("head_dim", 1) != 1:
        return Declined("head_dim: the published kernels have one head for each channel, and raise for others")
    width = config["d_model"]
    linear = {name: nn.Linear(width, width) for name in ("q_proj", "k_proj", "v_proj", "output_linear")}
    module = nn.ModuleDict({**linear, "k_kernel": build(config, width), "kernel": build(config, width)})

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = {f"{name}.{part}": theirs[f"{name}.{part}"] for name in linear for part in ("weight", "bias")}
        for name, skip in (("k_kernel", "k_D"), ("kernel", "D")):
            ours |= {f"{name}.kernel": theirs[f"{name}.kernel"], f"{name}.skip": theirs[skip]}
        return ours

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        q, k, v = (module[name](tensors["input"]) for name in ("q_proj", "k_proj", "v_proj"))
        return {"output": module["output_linear"](q * module["kernel"](module["k_kernel"](k) * v))}

    return Published(module, weights, run)
