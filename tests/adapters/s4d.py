"""S4D as in github.com/state-spaces/s4: the kernel alone, its convolution layer, its block, and the minimal version.

    minimal         models/s4/s4d.py, S4D            convolution, GELU, gated 1x1 convolution
    SSMKernelDiag   models/s4/s4.py                  the kernel, its recurrence and its response to a state
    FFTConv         models/s4/s4.py, mode "diag"     kernel, skip connection, activation
    S4Block         models/s4/s4.py, mode "diag"     FFTConv, activation, linear map with activation

Several published `channels` of H features are a mixer of ours with channels * H features, feature c H + h in the place
of (c, h), whose A, B and dt are repeated.  Without channels, `n_ssm` is our own.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

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
    adapters = {"S4D": minimal, "SSMKernelDiag": kernel, "FFTConv": layer, "S4Block": block}
    return adapters[published_class](config)


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
        x = tensors["input"].mT if config.get("transposed", True) else tensors["input"]
        y = F.glu(module["linear"](F.gelu(module["s4d"](x))))
        return {
            "output": y.mT if config.get("transposed", True) else y,
            "kernel": module["s4d"].kernels(x.shape[1])[0],
        }

    return Published(module, weights, run)


def build(config: dict[str, Any], kernel_length: int | None, rate: float) -> S4D:
    """Our mixer of the options that published kernels and layers share."""
    channels, real = count_channels(config), config.get("is_real", False)
    return S4D(
        config["d_model"] * channels,
        d_state=config.get("d_state", 64),
        init="real" if real else "lin",
        discretisation=config.get("disc", "zoh"),
        causal=not config.get("bidirectional", False),
        n_ssm=config.get("n_ssm") if channels == 1 else None,
        options=S4DOptions(
            kernel_length=kernel_length,
            rate=rate,
            bandlimit=config.get("bandlimit"),
            real=real,
            dt_tied=config.get("dt_tie", True),
            dt_fast=config.get("dt_fast", False),
            dt_transform=config.get("dt_transform", "exp"),
            real_transform=config.get("real_transform", "exp"),
            imag_transform=config.get("imag_transform", "none"),
        ),
    )


def build_both(config: dict[str, Any], kernel_length: int | None) -> nn.ModuleDict:
    """The parallel view, and the recurrent one: in the published code that knows neither `l_max` nor `rate`."""
    return nn.ModuleDict(
        {"parallel": build(config, kernel_length, config.get("rate", 1.0)), "recurrent": build(config, None, 1.0)}
    )


def count_channels(config: dict[str, Any]) -> int:
    """How many outputs each feature has, before a gated activation halves them."""
    return config.get("channels", 1) * (2 if config.get("activation") == "glu" else 1)


def system_weights(theirs: Tensors, prefix: str, mixers: nn.ModuleDict, channels: int) -> dict[str, Tensor]:
    """The parameters of the system in both views, repeated where one published row serves several of our features."""
    mixer = cast(S4D, mixers["parallel"])

    def tiled(rows: Tensor) -> Tensor:
        """Row h mod S of a published parameter for feature h, the same for every channel."""
        if channels == 1:
            return rows
        features = mixer.d_model // channels
        return rows.repeat(features // rows.shape[0], *[1] * (rows.ndim - 1)).repeat(channels, *[1] * (rows.ndim - 1))

    ours = {
        "inv_dt": theirs[f"{prefix}inv_dt"].repeat(channels, 1),
        "A_real": tiled(theirs[f"{prefix}A_real"]),
        "B": tiled(theirs[f"{prefix}B"][0]),
        "C": theirs[f"{prefix}C"].reshape(mixer.C.shape),  # directions come first, then channels
    }
    if not mixer.options.real:
        ours["A_imag"] = tiled(theirs[f"{prefix}A_imag"])
    return {f"{view}.{name}": value for view in mixers for name, value in ours.items()}


def with_modes(mixer: S4D, modes: Tensor, channels: int) -> S4DState:
    """A state with the published modes, which all channels share."""
    state = mixer.init_state(len(modes))
    return state._replace(modes=torch.view_as_complex(modes).repeat(1, channels, 1))


def real_pairs(modes: Tensor, channels: int) -> Tensor:
    """Our modes as published: those of one channel, as pairs."""
    return torch.view_as_real(modes[:, : modes.shape[1] // channels])


def kernel(config: dict[str, Any]) -> Published:
    """The kernel alone: ours, with no skip connection.  It has the length that is asked for, whatever `l_max` says."""
    mixers, channels = build_both(config, None), count_channels(config)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        silent = torch.zeros(config["d_model"] * channels, dtype=torch.float64)
        return system_weights(theirs, "", mixers, channels) | {f"{view}.D": silent for view in mixers}

    def split(y: Tensor) -> Tensor:
        """(..., c h, k) -> (..., c, h, k)."""
        return y.unflatten(-2, (channels, -1))

    def run(mixers: Any, tensors: Tensors) -> dict[str, Tensor]:
        kernels = split(mixers["parallel"].kernels(config["L"])).flatten(0, 1)
        results = {"output": kernels, "kernel": kernels}
        mixer = mixers["recurrent"]
        log_abar, bbar, C = mixer._system()
        for name, value in (("dA", log_abar.exp()), ("dB", bbar), ("dC", split(C).flatten(0, 1))):
            if f"extra/{name}" in tensors:
                first = value if name == "dC" else value[: config["d_model"]]
                results[f"extra/{name}"] = torch.view_as_real(first)
        if "step_output" in tensors:
            u = tensors["extra/step_input"].mT.repeat(1, 1, channels)
            y, state = steps(mixer, u)
            results |= {"step_output": split(y.mT), "state/step_final": real_pairs(state.modes, channels)}
        if "k_state" in tensors:
            u = tensors["extra/u"].mT.repeat(1, 1, channels)
            start = with_modes(mixer, tensors["state/0"], channels)
            silence, _ = mixer.prefill(torch.zeros_like(u), start)
            _, state = mixer.prefill(u, start)
            results |= {"k_state": split(silence.mT), "state/L": real_pairs(state.modes, channels)}
        return results

    return Published(mixers, weights, run)


def steps(mixer: S4D, x: Tensor) -> tuple[Tensor, S4DState]:
    """One position after the other, from rest."""
    outputs, state = [], mixer.init_state(len(x))
    for x_t in x.unbind(1):
        y, state = mixer.step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def layer(
    config: dict[str, Any], prefix: str = "", outside: Callable[[Any, Tensor], Tensor] = lambda _, y: y
) -> Published:
    """The convolution layer; `outside` is what a block does to its output."""
    mixers, channels = build_both(config, config.get("l_max")), count_channels(config)
    activation = ACTIVATIONS[config.get("activation", "gelu")]

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        skip = {f"{view}.D": theirs[f"{prefix}D"].flatten() for view in mixers}
        return system_weights(theirs, f"{prefix}kernel.", mixers, channels) | skip

    def finish(mixers: Any, y: Tensor, swap: bool) -> Tensor:
        """From the output of our mixer (b, l, c h) to the published one."""
        if swap:
            y = y.unflatten(-1, (channels, -1)).mT.flatten(-2)
        y = outside(mixers, activation(y))
        return y.mT if config.get("transposed", True) else y

    def run(mixers: Any, tensors: Tensors) -> dict[str, Tensor]:
        parallel, recurrent = mixers["parallel"], mixers["recurrent"]
        x = tensors["input"].mT if config.get("transposed", True) else tensors["input"]
        mask = None
        if "lengths" in tensors:
            mask = (torch.arange(x.shape[1]) < tensors["lengths"][:, None]).expand(len(x), -1)
        kernels = parallel.kernels(x.shape[1])
        results = {"kernel": kernels.unflatten(1, (channels, -1)).flatten(0, 1)}
        x = x.repeat(1, 1, channels)
        if "state/0" in tensors:
            y, state = recurrent.prefill(x, with_modes(recurrent, tensors["state/0"], channels), mask)
            results |= {"state/L": real_pairs(state.modes, channels)}
        else:
            y = parallel(x, mask)
        results["output"] = finish(mixers, y, config.get("swap_channels", False))
        if "step_output" in tensors:
            z, state = steps(recurrent, x)
            results["step_output"] = finish(mixers, z, swap=False)  # as published
            results["state/step_final"] = real_pairs(state.modes, channels)
        return results

    return Published(mixers, weights, run)


def block(config: dict[str, Any]) -> Published:
    """The layer, an activation, and a linear map with another."""
    multiply = ACTIVATIONS[config.get("mult_act")]
    final = config.get("postact") or config.get("final_act", "glu")
    width = config["d_model"]

    def outside(mixers: Any, y: Tensor) -> Tensor:
        y = multiply(y)
        return y if final is None else ACTIVATIONS[final](mixers["linear"](y))

    inner = layer(config, "layer.", outside)
    mixers = cast(nn.ModuleDict, inner.module)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = inner.weights(theirs)
        if final is not None:
            ours |= {f"linear.{name}": theirs[f"output_linear.0.{name}"] for name in ("weight", "bias")}
        return ours

    if final is None:
        return inner
    whole = nn.ModuleDict(dict(mixers))
    whole["linear"] = nn.Linear(config.get("channels", 1) * width, (2 if final == "glu" else 1) * width)
    return replace(inner, module=whole, weights=weights)
