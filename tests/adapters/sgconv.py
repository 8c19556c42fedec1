"""SGConv's layer: gconv_standalone.py, GConv of github.com/ctlllll/SGConv.

Several published `channels` of H features are a mixer of ours with channels * H features, feature c H + h in the place
of (c, h); its multipliers are repeated.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters import Declined, Published, Tensors
from adapters.long_conv import OutputLayer, linear_weights
from adapters.s4d import ACTIVATIONS
from longreach.mixers import SGConv, SGConvOptions

Decay = Literal["scale", "power", "fixed-power"]


class ScalarNorm(nn.Module):
    """The published norm over channels with one scale and one shift."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(1))
        self.s = nn.Parameter(torch.ones(1))

    def forward(self, y: Tensor) -> Tensor:
        """Over the last axis."""
        deviation, mean = torch.std_mean(y, dim=-1, unbiased=False, keepdim=True)
        return self.s / deviation * (y - mean + self.m)


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published layer."""
    if config.get("hyper_act") is not None:
        return Declined("hyper_act: raises an error in the published code")
    if config.get("init_scale", 0) < 0:
        return Declined("init_scale: a negative one raises an error in the published code")
    channels, width = config.get("channels", 1), config["d_model"]
    module = nn.ModuleDict({"conv": build(config, channels * width)})
    linear, transposed = config.get("linear", False), config.get("transposed", True)
    final = config.get("postact")
    if not linear:
        module["output"] = OutputLayer(channels * width, width, None, final)
        if config.get("ln"):
            module["norm"] = ScalarNorm() if transposed else nn.LayerNorm(channels * width)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = {f"conv.{name}": tensor for name, tensor in conv_weights(theirs, module["conv"], channels).items()}
        if "output" in module:
            ours |= linear_weights(theirs, "output_linear" if final is None else "output_linear.0")
        if "norm" in module:
            ours |= {f"norm.{name}": theirs[f"norm.norm.{name}"] for name, _ in module["norm"].named_parameters()}
        return ours

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        x = tensors["input"].mT if transposed else tensors["input"]
        y = module["conv"](x.repeat(1, 1, channels))
        if not linear:
            y = ACTIVATIONS[config.get("activation", "gelu")](y)
            y = module["output"](module["norm"](y) if "norm" in module else y)
        results = {"output": y.mT if transposed else y}
        if "kernel" in tensors:
            results["kernel"] = published_kernel(module["conv"], x.shape[1], channels)
        return results

    return Published(module, weights, run, unchecked={"param/kernel_norm_initialized": "ours is there from the start"})


def build(config: dict[str, Any], features: int) -> SGConv:
    """Our mixer of the published options; `mode` is made of words."""
    mode = config.get("mode", "cat_randn")
    decay: Decay = "scale"
    if "learnable" in mode:
        decay = "fixed-power" if "fixed" in mode else "power"
    options = SGConvOptions(
        combine="sum" if "sum" in mode else "cat",
        init="normal" if "randn" in mode else "cosine",
        interpolation="nearest" if "nearest" in mode else "linear",
        n_scales=config.get("n_scales"),
        first_scale=config.get("init_scale", 0),
        decay=decay,
        decay_min=float(config.get("decay_min", 2)),
        decay_max=float(config.get("decay_max", 2)),
        lr=config.get("lr", 1e-3),
    )
    return SGConv(
        features,
        kernel_length=config.get("l_max", 1),
        piece_length=config.get("kernel_dim", 64),
        causal=not config.get("bidirectional", False),
        options=options,
    )


def conv_weights(theirs: Tensors, mixer: SGConv, channels: int) -> dict[str, Tensor]:
    """Pieces are stored one by one, with directions before channels."""
    pieces = torch.stack([theirs[f"kernel_list.{i}"] for i in range(len(mixer.pieces))])
    ours = {
        "pieces": pieces.view(mixer.pieces.shape),
        "skip": theirs["D"].flatten(),
        "norm": theirs["kernel_norm"].reshape(mixer.norm.shape),
    }
    multiplier = theirs["multiplier"]  # one where the decay is a power
    if mixer.options.decay == "scale":
        return ours | {"multiplier": multiplier.flatten().repeat(channels)}
    return ours | {"decay": theirs["decay"].repeat(channels)}


def published_kernel(mixer: SGConv, length: int, channels: int) -> Tensor:
    """As long as the input, and with two directions of twice that length, the future counting back from the end."""
    count = min(length, mixer.taps)
    kernels = F.pad(mixer.kernels(count), (0, length - count)).unflatten(1, (channels, -1))
    if mixer.causal:
        return kernels[0]
    past, future = kernels
    return F.pad(past, (0, length)) + F.pad(future.flip(-1), (length, 0))
