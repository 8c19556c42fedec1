"""S4 as in github.com/state-spaces/s4: the DPLR kernel alone, its convolution layer, and its block.

    SSMKernelDPLR   models/s4/s4.py                  the kernel, its recurrence and its response to a state
    FFTConv         models/s4/s4.py, mode "dplr"     kernel, skip connection, activation
    S4Block         models/s4/s4.py, mode "dplr"     FFTConv, activation, linear map with activation

Published kernels store C - C M^l, l = `l_kernel`; ours store C.  Their parallel view takes it at the sampling rate,
their recurrent view at rate 1, and does not know `l_max` either: so there are two mixers of ours, of the same weights.

Several published `channels` of H features are a mixer of ours with channels * H features, feature c H + h in the place
of (c, h), whose A, P, B and dt are repeated.  Without channels, `n_ssm` is our own.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from adapters import Declined, Published, Tensors
from adapters.s4d import ACTIVATIONS, count_channels
from longreach.hippo.transforms import TRANSFORMS, time_steps
from longreach.mixers import S4, S4Options
from longreach.mixers.s4 import S4Parameters, S4State
from longreach.models.published_s4 import whole_output

MODES = ("dplr", "nplr", "s4")


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published class and options."""
    if config.get("mode", "dplr") not in MODES:
        return Declined(f"mode={config['mode']!r} is another system")
    for option in ("gate", "bottleneck"):
        if config.get(option) is not None:
            return Declined(f"{option}: raises an error in the published code")
    if config.get("is_real"):
        return Declined("is_real: the published DPLR kernel takes B and P as complex, and raises an error")
    published_class = metadata["source"].rpartition(":")[2]
    adapters = {"SSMKernelDPLR": kernel, "FFTConv": layer, "S4Block": block}
    return adapters[published_class](config)


def build(config: dict[str, Any], kernel_length: int | None, rate: float) -> S4:
    """Our mixer of the options that published kernels and layers share."""
    channels = count_channels(config)
    return S4(
        config["d_model"] * channels,
        d_state=config.get("d_state", 64) // 2 * 2,
        init="lin",
        rank=config.get("rank", 1),
        causal=not config.get("bidirectional", False),
        n_ssm=config.get("n_ssm") if channels == 1 else None,
        options=S4Options(
            kernel_length=kernel_length,
            rate=rate,
            dt_tied=config.get("dt_tie", True),
            dt_fast=config.get("dt_fast", False),
            dt_transform=config.get("dt_transform", "exp"),
            real_transform=config.get("real_transform", "exp"),
            imag_transform=config.get("imag_transform", "none"),
        ),
    )


def build_both(config: dict[str, Any], kernel_length: int | None) -> nn.ModuleDict:
    """The parallel view, and the recurrent one."""
    return nn.ModuleDict(
        {"parallel": build(config, kernel_length, config.get("rate", 1.0)), "recurrent": build(config, None, 1.0)}
    )


def system_weights(theirs: Tensors, prefix: str, mixers: nn.ModuleDict, config: dict[str, Any]) -> dict[str, Tensor]:
    """The parameters of the system in both views, repeated where one published row serves several of our features."""
    channels, width = count_channels(config), config["d_model"]

    def tiled(rows: Tensor, axis: int = 0) -> Tensor:
        """Row h mod S of a published parameter for feature h, the same for every channel."""
        if channels == 1:
            return rows
        return torch.cat([rows] * (channels * width // rows.shape[axis]), dim=axis)

    read = {name: theirs[prefix + name] for name in ("inv_dt", "A_real", "A_imag", "B", "P", "C", "l_kernel")}
    ours = {}
    for view, mixer in mixers.items():
        options = cast(S4, mixer).options
        parameters = S4Parameters(
            read["inv_dt"].repeat(channels, 1),
            tiled(read["A_real"]),
            tiled(read["A_imag"]),
            tiled(read["B"][0]),
            tiled(read["P"], 1),
            read["C"].reshape(cast(S4, mixer).C.shape),  # directions come first, then channels
        )
        if view == "parallel" and config.get("bandlimit") is not None:
            parameters = parameters._replace(C=bandlimited(parameters, options, config["bandlimit"]))
        parameters = parameters._replace(C=whole_output(parameters, options, read["l_kernel"]))
        ours |= {f"{view}.{name}": value for name, value in parameters._asdict().items()}
    return ours


def bandlimited(parameters: S4Parameters, options: S4Options, limit: float) -> Tensor:
    """What is stored, without the modes whose frequency at rate 1 is too high."""
    dt = time_steps(parameters.inv_dt, options.dt_transform, options.dt_fast)
    frequency = TRANSFORMS[options.imag_transform](parameters.A_imag)
    turns = dt * frequency.repeat(len(dt) // len(frequency), 1).abs() / (2 * torch.pi)
    return parameters.C * (turns < limit / 2)[..., None]


def closed(modes: Tensor) -> Tensor:
    """Modes with their conjugates, as pairs of real numbers."""
    return torch.view_as_real(torch.cat([modes, modes.conj()], dim=-1).resolve_conj())


def matrix(mixer: S4) -> Tensor:
    """The sampled matrix on all modes."""
    abar, left, right, _, _ = mixer._system()
    both = [torch.cat([part, part.conj()], dim=-1) for part in (abar, left, right)]
    return torch.view_as_real(torch.diag_embed(both[0]) - torch.einsum("rdm,rdn->dmn", both[1], both[2]))


def with_modes(mixer: S4, modes: Tensor, channels: int) -> S4State:
    """A state with the published modes, which all channels share."""
    state = mixer.init_state(len(modes))
    return state._replace(modes=torch.view_as_complex(modes).repeat(1, channels, 1))


def steps(mixer: S4, x: Tensor) -> tuple[Tensor, S4State]:
    """One position after the other, from rest."""
    outputs, state = [], mixer.init_state(len(x))
    for x_t in x.unbind(1):
        y, state = mixer.step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def of_all_features(values: Tensor, config: dict[str, Any]) -> Tensor:
    """Modes (b, c h, n) of one channel."""
    return values[:, : config["d_model"]]


def true_output(mixer: S4, channels: int) -> Tensor:
    """C (directions and channels, features, n) as pairs of real numbers."""
    return mixer.C.unflatten(1, (channels, -1)).flatten(0, 1)


def kernel(config: dict[str, Any]) -> Published:
    """The kernel alone: ours, with no skip connection.  It has the length that is asked for, whatever `l_max` says."""
    mixers, channels = build_both(config, None), count_channels(config)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        silent = torch.zeros(config["d_model"] * channels, dtype=torch.float64)
        return system_weights(theirs, "", mixers, config) | {f"{view}.D": silent for view in mixers}

    def split(y: Tensor) -> Tensor:
        """(..., c h, k) -> (..., c, h, k)."""
        return y.unflatten(-2, (channels, -1))

    def run(mixers: Any, tensors: Tensors) -> dict[str, Tensor]:
        mixer = mixers["recurrent"]
        kernels = split(mixers["parallel"].kernels(config["L"])).flatten(0, 1)
        results = {"output": kernels, "kernel": kernels}
        found = {
            "extra/dA": lambda: matrix(mixer)[: config["d_model"]],
            "extra/dB": lambda: closed(mixer._system().bbar)[: config["d_model"]],
            "extra/dC": lambda: closed(torch.view_as_complex(true_output(mixer, channels))),
            "extra/C_true": lambda: true_output(mixer, channels),
        }
        results |= {name: make() for name, make in found.items() if name in tensors}
        if "step_output" in tensors:
            y, state = steps(mixer, tensors["extra/step_input"].mT.repeat(1, 1, channels))
            results["step_output"] = split(y.mT)
            results["state/step_final"] = closed(of_all_features(state.modes, config))
        if "k_state" in tensors:
            u = tensors["extra/u"].mT.repeat(1, 1, channels)
            start = with_modes(mixer, tensors["state/0"], channels)
            silence, _ = mixer.prefill(torch.zeros_like(u), start)
            _, state = mixer.prefill(u, start)
            results["k_state"] = split(silence.mT)
            results["state/L"] = torch.view_as_real(of_all_features(state.modes, config))
        return results

    return Published(mixers, weights, run)


def layer(
    config: dict[str, Any], prefix: str = "", outside: Callable[[Any, Tensor], Tensor] = lambda _, y: y
) -> Published:
    """The convolution layer; `outside` is what a block does to its output."""
    mixers = build_both(config, config.get("l_max"))

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        skip = {f"{view}.D": theirs[f"{prefix}D"].flatten() for view in mixers}
        return system_weights(theirs, f"{prefix}kernel.", mixers, config) | skip

    run = partial(run_layer, config=config, outside=outside)
    return Published(mixers, weights, run)


def run_layer(
    mixers: Any, tensors: Tensors, *, config: dict[str, Any], outside: Callable[[Any, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Outputs, states and kernels of a layer."""
    channels, transposed = count_channels(config), config.get("transposed", True)
    activation = ACTIVATIONS[config.get("activation", "gelu")]
    parallel, recurrent = mixers["parallel"], mixers["recurrent"]

    def finish(y: Tensor, swap: bool) -> Tensor:
        """From the output of our mixer (b, l, c h) to the published one."""
        if swap:
            y = y.unflatten(-1, (channels, -1)).mT.flatten(-2)
        y = outside(mixers, activation(y))
        return y.mT if transposed else y

    x = tensors["input"].mT if transposed else tensors["input"]
    mask = None
    if "lengths" in tensors:
        mask = (torch.arange(x.shape[1]) < tensors["lengths"][:, None]).expand(len(x), -1)
    results = {"kernel": parallel.kernels(x.shape[1]).unflatten(1, (channels, -1)).flatten(0, 1)}
    if "extra/C_true" in tensors:
        results["extra/C_true"] = true_output(recurrent, channels)
    x = x.repeat(1, 1, channels)
    if "state/0" in tensors:
        y, state = recurrent.prefill(x, with_modes(recurrent, tensors["state/0"], channels), mask)
        results["state/L"] = torch.view_as_real(of_all_features(state.modes, config))
    else:
        y = parallel(x, mask)
    results["output"] = finish(y, config.get("swap_channels", False))
    if "step_output" in tensors:
        z, state = steps(recurrent, x)
        results["step_output"] = finish(z, swap=False)  # as published
        results["state/step_final"] = closed(of_all_features(state.modes, config))
    return results


def block(config: dict[str, Any]) -> Published:
    """The layer, an activation, and a linear map with another."""
    multiply = ACTIVATIONS[config.get("mult_act")]
    final = config.get("postact") or config.get("final_act", "glu")
    width = config["d_model"]

    def outside(mixers: Any, y: Tensor) -> Tensor:
        y = multiply(y)
        return y if final is None else ACTIVATIONS[final](mixers["linear"](y))

    inner = layer(config, "layer.", outside)
    if final is None:
        return inner
    mixers = cast(nn.ModuleDict, inner.module)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        linear = {f"linear.{name}": theirs[f"output_linear.0.{name}"] for name in ("weight", "bias")}
        return inner.weights(theirs) | linear

    whole = nn.ModuleDict(dict(mixers))
    whole["linear"] = nn.Linear(config.get("channels", 1) * width, (2 if final == "glu" else 1) * width)
    return replace(inner, module=whole, weights=weights)
