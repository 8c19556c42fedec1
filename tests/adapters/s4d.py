"""S4D as in github.com/state-spaces/s4: the kernel alone, its convolution layer, its block, and the minimal version.

    minimal         models/s4/s4d.py, S4D            convolution, GELU, gated 1x1 convolution
    SSMKernelDiag   models/s4/s4.py                  the kernel, its recurrence and its response to a state
    FFTConv         models/s4/s4.py, mode "diag"     kernel, skip connection, activation
    S4Block         models/s4/s4.py, mode "diag"     FFTConv, activation, linear map with activation

Several published `channels` of H features are a mixer of ours with channels * H features, feature c H + h in the place
of (c, h), whose A, B and dt are repeated.  Without channels, `n_ssm` is our own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters import Declined, Published, Tensors
from longreach.mixers import S4D, S4DOptions
from longreach.mixers.s4d import S4DState

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "id": lambda x: x,
    "identity": lambda x: x,
    "linear": lambda x: x,
    "gelu": F.gelu,
    "relu": F.relu,
    "elu": F.elu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "swish": F.silu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "glu": partial(F.glu, dim=-1),
}


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published class and options."""
    if config.get("disc") == "dss":
        return Declined("a kernel that depends on the length of its input; DSS is a system of its own")
    for option in ("gate", "bottleneck"):
        if config.get(option) is not None:
            return Declined(f"{option}: raises an error in the published code")
    published_class = metadata["source"].rpartition(":")[2]
    if published_class == "S4D":
        return minimal(config)
    if published_class == "SSMKernelDiag":
        return kernel(config)
    return layer(config, "layer." if published_class == "S4Block" else "")


def minimal(config: dict[str, Any]) -> Published:
    """The minimal S4D: its Im A has the opposite sign, and B is one."""
    module = nn.ModuleDict(
        {
            "s4d": S4D(config["d_model"], d_state=config["d_state"]),
            "linear": nn.Linear(*(config["d_model"] * k for k in (1, 2))),
        }
    )

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        modes = theirs["kernel.A_imag"]
        return {
            "s4d.inv_dt": theirs["kernel.log_dt"][:, None],
            "s4d.A_real": theirs["kernel.log_A_real"],
            "s4d.A_imag": -modes,
            "s4d.B": torch.stack([torch.ones_like(modes), torch.zeros_like(modes)], dim=-1).detach(),
            "s4d.C": theirs["kernel.C"][None],
            "s4d.D": theirs["D"],
            "linear.weight": theirs["output_linear.0.weight"][..., 0],
            "linear.bias": theirs["output_linear.0.bias"],
        }

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        x = tensors["input"].mT if config["transposed"] else tensors["input"]
        y = F.glu(module["linear"](F.gelu(module["s4d"](x))))
        return {
            "output": y.mT if config["transposed"] else y,
            "kernel": module["s4d"].kernels(x.shape[1])[0],
        }

    return Published(module, weights, run)


def build(config: dict[str, Any], kernel_length: int | None) -> tuple[S4D, int]:
    """Our mixer of the options that published kernels and layers share; and the number of channels."""
    channels = config.get("channels", 1) * (2 if config.get("activation") == "glu" else 1)
    real = config.get("is_real", False)
    mixer = S4D(
        config["d_model"] * channels,
        d_state=config["d_state"] // 2 * 2,
        init="real" if real else "lin",
        discretisation=config.get("disc", "zoh"),
        bidirectional=config.get("bidirectional", False),
        n_ssm=config.get("n_ssm") if channels == 1 else None,
        options=S4DOptions(
            kernel_length=kernel_length,
            rate=config.get("rate", 1.0),
            bandlimit=config.get("bandlimit"),
            real=real,
            dt_tied=config.get("dt_tie", True),
            dt_fast=config.get("dt_fast", False),
            dt_transform=config.get("dt_transform", "exp"),
            real_transform=config.get("real_transform", "exp"),
            imag_transform=config.get("imag_transform", "none"),
        ),
    )
    return mixer, channels


def system_weights(theirs: Tensors, prefix: str, mixer: S4D, channels: int) -> dict[str, Tensor]:
    """The parameters of the system, repeated where one published row serves several of our features."""
    copies = mixer.n_ssm if channels == 1 else mixer.d_model
    A_real, C = theirs[f"{prefix}A_real"], theirs[f"{prefix}C"]
    ours = {
        "inv_dt": theirs[f"{prefix}inv_dt"].repeat(channels, 1),
        "A_real": _tile(A_real, copies, channels),
        "B": _tile(theirs[f"{prefix}B"][0], copies, channels),
        "C": C.reshape(mixer.C.shape),  # directions come first, then channels
    }
    if not mixer.options.real:
        ours["A_imag"] = _tile(theirs[f"{prefix}A_imag"], copies, channels)
    return ours


def _tile(rows: Tensor, copies: int, channels: int) -> Tensor:
    """Row h mod S of a published parameter for feature h, the same for every channel."""
    features = copies // channels
    return rows.repeat(features // rows.shape[0], *[1] * (rows.ndim - 1)).repeat(channels, *[1] * (rows.ndim - 1))


def rest(mixer: S4D, batch_size: int, modes: Tensor | None, channels: int) -> S4DState:
    """The state at rest, or with the published modes, which all channels share."""
    state = mixer.init_state(batch_size)
    return state if modes is None else state._replace(modes=torch.view_as_complex(modes).repeat(1, channels, 1))


def real_pairs(modes: Tensor, channels: int) -> Tensor:
    """Our modes as published: those of one channel, as pairs."""
    return torch.view_as_real(modes[:, : modes.shape[1] // channels])


def kernel(config: dict[str, Any]) -> Published:
    """The kernel alone: ours, with no skip connection."""
    module, channels = build(config, config.get("l_max"))
    length, features = config["L"], config["d_model"]

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        D = torch.zeros(module.d_model, dtype=torch.float64)
        return system_weights(theirs, "", module, channels) | {"D": D}

    def run(module: S4D, tensors: Tensors) -> dict[str, Tensor]:
        kernels = module.kernels(length).unflatten(1, (channels, features)).flatten(0, 1)
        results = {"output": kernels, "kernel": kernels}
        split = partial(_split_channels, channels=channels)
        if "extra/dA" in tensors:
            log_abar, bbar, C = module._system()
            results["extra/dA"] = torch.view_as_real(log_abar.exp()[:features])
            results["extra/dB"] = torch.view_as_real(bbar[:features])
            results["extra/dC"] = torch.view_as_real(C.unflatten(1, (channels, features)).flatten(0, 1))
        if "step_output" in tensors:
            u = tensors["extra/step_input"].mT.repeat(1, 1, channels)
            y, state = steps(module, u, rest(module, len(u), None, channels))
            results |= {"step_output": split(y), "state/step_final": real_pairs(state.modes, channels)}
        if "k_state" in tensors:
            u = tensors["extra/u"].mT.repeat(1, 1, channels)
            start = rest(module, len(u), tensors["state/0"], channels)
            silence, _ = module.prefill(torch.zeros_like(u), start)
            _, state = module.prefill(u, start)
            results |= {"k_state": split(silence), "state/L": real_pairs(state.modes, channels)}
        return results

    return Published(module, weights, run)


def _split_channels(y: Tensor, channels: int) -> Tensor:
    """(b, l, c h) -> (b, c, h, l)."""
    return y.mT.unflatten(1, (channels, -1))


def steps(mixer: S4D, x: Tensor, state: S4DState) -> tuple[Tensor, S4DState]:
    """One position after the other."""
    outputs = []
    for x_t in x.unbind(1):
        y, state = mixer.step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def layer(config: dict[str, Any], prefix: str) -> Published:
    """The convolution layer, and the block around it if `prefix` says so.

    The published recurrence knows nothing of `l_max`, so the steps run on a mixer without that limit.
    """
    mixer, channels = build(config, config.get("l_max"))
    parts: dict[str, nn.Module] = {"mixer": mixer}
    if config.get("l_max") is not None and mixer.causal:
        parts["unlimited"] = build(config, None)[0]
    block = bool(prefix)
    outside = config.get("channels", 1)
    width, final = config["d_model"], config.get("final_act", "glu")
    if block and final is not None:
        parts["linear"] = nn.Linear(outside * width, (2 if final == "glu" else 1) * width)
    activation = config.get("activation", "gelu")

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = {}
        for name in ("mixer", "unlimited"):
            if name in parts:
                system = system_weights(theirs, f"{prefix}kernel.", mixer, channels)
                system["D"] = theirs[f"{prefix}D"].flatten()
                ours |= {f"{name}.{key}": value for key, value in system.items()}
        if "linear" in parts:
            ours |= {f"linear.{key}": theirs[f"output_linear.0.{key}"] for key in ("weight", "bias")}
        return ours

    def finish(module: Any, y: Tensor) -> Tensor:
        """From the output of our mixer (b, l, c h) to the published one (b, l, h)."""
        y = y.unflatten(-1, (channels, width))
        y = ACTIVATIONS[activation]((y.mT if config.get("swap_channels") else y).flatten(-2))
        y = ACTIVATIONS[config.get("mult_act") if block else None](y)
        return ACTIVATIONS[final](module["linear"](y)) if "linear" in parts else y

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        turned = config.get("transposed", True)
        x = tensors["input"].mT if turned else tensors["input"]
        mask = None
        if "lengths" in tensors:
            mask = torch.arange(x.shape[1]) < tensors["lengths"][:, None]
        x = x.repeat(1, 1, channels)
        out = lambda y: finish(module, y).mT if turned else finish(module, y)  # noqa: E731
        results = {"kernel": module["mixer"].kernels(x.shape[1]).unflatten(1, (channels, width)).flatten(0, 1)}
        if "state/0" in tensors:
            y, state = module["mixer"].prefill(x, rest(mixer, len(x), tensors["state/0"], channels), mask)
            results |= {"state/L": real_pairs(state.modes, channels)}
        else:
            y = module["mixer"](x, mask)
        results["output"] = out(y)
        if "step_output" in tensors:
            stepped = module["unlimited" if "unlimited" in parts else "mixer"]
            z, state = steps(stepped, x, rest(stepped, len(x), None, channels))
            results |= {"step_output": out(z), "state/step_final": real_pairs(state.modes, channels)}
        return results

    return Published(nn.ModuleDict(parts), weights, run)
