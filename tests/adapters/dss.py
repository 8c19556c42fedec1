"""DSS as in github.com/ag1988/dss, src/models/sequence/ss/standalone/dss.py.

    hippo_skew_evals    where Lambda starts
    DSSKernel           the kernel alone
    DSS                 convolution, activation, linear map with activation

Several published `channels` of H features are a mixer of ours with channels * H features, feature c H + h in the place
of (c, h).  The published softmax runs over the length of the input; ours over `max_length`, which is set to that here.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters import Declined, Published, Tensors
from adapters.s4d import ACTIVATIONS
from longreach import ops
from longreach.hippo import normal_form
from longreach.mixers import DSS, DSSOptions


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published class and options."""
    if config.get("weight_norm"):
        return Declined("weight_norm: a parametrisation of the linear map, which is not part of the mixer")
    published_class = config.get("cls")
    if published_class is None:
        return start(config)
    return kernel(config) if published_class == "DSSKernel" else layer(config)


def start(config: dict[str, Any]) -> Published:
    """The eigenvalues with Im > 0 at the start, the largest first."""
    size = config["N"]

    def run(_: Any, tensors: Tensors) -> dict[str, Tensor]:
        ours = DSS(1, d_state=size, version="clip")
        assert torch.equal(ours.A_imag, -normal_form("legs", 2 * size).W.imag.float())
        return {"Lambda": torch.stack([ours.A_real, ours.A_imag], dim=-1).detach()}

    return Published(nn.Identity(), lambda theirs: {}, run)


def build(config: dict[str, Any], features: int) -> DSS:
    """Our mixer of the options that kernel and layer share."""
    version = config.get("version", "softmax")
    return DSS(
        features,
        max_length=1 if version == "softmax" else None,  # set when the length is known
        d_state=config.get("N", config.get("d_state", 64)),
        version=version,
        causal=not config.get("bidirectional", False),
        options=DSSOptions(
            separate_dt=config.get("sep_dt_re_im", True),
            max_real=config.get("max_real_Lambda", 1e-4),
            epsilon=config.get("epsilon", 1e-7) if version == "softmax" else 1e-7,
        ),
    )


def system_weights(theirs: Tensors, mixer: DSS, prefix: str = "") -> dict[str, Tensor]:
    """The parameters of the kernel."""
    log_dt = theirs[f"{prefix}log_dt"]
    log_dt = log_dt[:, None] if log_dt.ndim == 1 else log_dt
    if mixer.version.startswith("exp"):
        imag = "Lambda_log_im" if mixer.version == "exp-re-im" else "Lambda_im"
        modes = {"A_real": theirs[f"{prefix}Lambda_log_neg_re"], "A_imag": theirs[f"{prefix}{imag}"]}
    else:
        modes = dict(zip(("A_real", "A_imag"), theirs[f"{prefix}Lambda"].unbind(-1), strict=True))
    W = theirs[f"{prefix}W"].reshape(mixer.W.shape)  # directions come first, then channels
    return {"log_dt": log_dt.repeat(mixer.d_model // len(log_dt), 1), "W": W} | modes


def published_kernels(mixer: DSS, length: int) -> Tensor:
    """The kernels over a softmax of `length`, with the published gradient.

    The maximum that the published softmax subtracts is taken for a constant, though it depends on Lambda and dt and
    does not cancel.  So the gradient of a mode with Re Lambda > 0 lacks a term; in values there is no difference.
    """
    if mixer.version == "softmax":
        mixer.max_length = length
    system = mixer._system()
    shift = -(length - 1) * (system.log_ratio - system.log_ratio.detach())
    return mixer._taps(system._replace(W=torch.where(system.rising, system.W * shift.exp(), system.W)), length)


def kernel(config: dict[str, Any]) -> Published:
    """The kernel alone: ours, with no skip connection."""
    channels = config.get("channels", 1)
    mixer = build(config, config["H"] * channels)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        return system_weights(theirs, mixer) | {"D": torch.zeros(mixer.d_model, dtype=torch.float64)}

    def run(mixer: Any, tensors: Tensors) -> dict[str, Tensor]:
        kernels = published_kernels(mixer, config["L"]).unflatten(1, (channels, -1)).flatten(0, 1)
        torch.testing.assert_close(mixer.kernels(config["L"]).flatten(), kernels.flatten(), rtol=1e-12, atol=1e-12)
        return {"output": kernels, "kernel": kernels}

    return Published(mixer, weights, run)


def layer(config: dict[str, Any]) -> Published:
    """The layer: ours, an activation and a linear map."""
    width, hyper, final = config["d_model"], config.get("hyper_act"), config.get("postact")
    channels = config.get("channels", 1) * (1 if hyper is None else 2)
    activation = ACTIVATIONS[config.get("activation", "gelu")]
    linear = nn.Linear(config.get("channels", 1) * width, (2 if final == "glu" else 1) * width)
    module = nn.ModuleDict({"dss": build(config, width * channels), "linear": linear})
    mixer: Any = module["dss"]
    transposed = config.get("transposed", True)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = system_weights(theirs, mixer, "kernel.") | {"D": theirs["D"].flatten()}
        name = "output_linear" if final is None else "output_linear.0"
        outer = {"linear.weight": theirs[f"{name}.weight"], "linear.bias": theirs[f"{name}.bias"].flatten()}
        return {f"dss.{key}": value for key, value in ours.items()} | outer

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        x = tensors["input"].mT if transposed else tensors["input"]
        length = min(x.shape[1], config.get("max_kernel_length") or x.shape[1])
        kernels = published_kernels(module["dss"], length)
        y = mix(module["dss"], kernels, x.repeat(1, 1, channels))
        if hyper is not None:
            y, gate = y.chunk(2, dim=-1)
            y = ACTIVATIONS[hyper](gate) * y
        y = ACTIVATIONS[final](module["linear"](activation(y)))
        flat = kernels.unflatten(1, (channels, -1)).flatten(0, 1)
        return {"output": y.mT if transposed else y, "kernel": flat}

    return Published(module, weights, run)


def mix(mixer: DSS, kernels: Tensor, x: Tensor) -> Tensor:
    """The mixer itself, where it means the same; where not, the published convolution with its kernels."""
    taps = kernels.shape[-1]
    if taps == x.shape[1] and not mixer._system().rising.any():
        return mixer(x)
    past, *future = kernels
    if future:  # published: a reverse kernel that is shorter than the input ends up at lags `taps` and later
        both = torch.cat([past, future[0].flip(-1)], dim=-1)
        return ops.long_conv(x.mT, both, skip=mixer.D, period=x.shape[1] + taps).mT
    return ops.long_conv(x.mT, F.pad(past, (0, x.shape[1] - taps)), skip=mixer.D).mT
