"""H3 as in github.com/HazyResearch/H3: the layer, its kernels alone, their start, and its gated convolution.

The published recurrence knows neither `l_max` nor `bandlimit` nor `force_real`, so that there are two of our mixers:
one for the parallel view, one for the steps.
"""

from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from adapters import Declined, Published, Tensors
from longreach import ops
from longreach.errors import InputError
from longreach.mixers import H3
from longreach.mixers.h3 import H3State
from longreach.models.published_h3 import build_h3, h3_rules
from longreach.models.published_layout import assemble

KERNEL = {"B": "B", "C": "C", "log_dt": "log_dt", "inv_A_real": "A_real", "A_imag": "A_imag"}
"""Published names of the diagonal kernel's parameters -> ours."""


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published class and options."""
    source = metadata["source"]
    try:
        if "fftconv_h3_ref" in source:
            return gated_convolution(config)
        if "dplr.py" in source:
            return start(config)
        if "SSKernel" in source:
            return {"diag": diagonal_kernel, "shift": shift_kernel, "ema": moving_average}[config["mode"]](config)
        return layer({name: value for name, value in config.items() if name not in ("L", "step_from")})
    except InputError as error:
        return Declined(str(error))


class Parameters(nn.Module):
    """Nothing but parameters; what is done with them is a function."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.zeros(1)))


def gated_convolution(config: dict[str, Any]) -> Published:
    """The convolution of products of keys and values, read by queries; both ways if there is a second kernel."""
    names = ("kernel", "D", "q", "v", *(["kernel_rev"] if config["bidirectional"] else []))

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        layout = H3(config["H"] * config["head_dim"], d_state=2, head_dim=config["head_dim"])
        query, key, value = layout._pair(module.q, tensors["input"], module.v)
        y = ops.long_conv(
            value,
            layout._spread(module.kernel),
            reverse_kernel=layout._spread(module.kernel_rev) if config["bidirectional"] else None,
            reverse_lag=0,
            skip=layout._spread(module.D),
            gate_before=key,
            gate_after=query,
        )
        return {"output": y.unflatten(1, (config["head_dim"], -1)).sum(1)}

    return Published(Parameters(*names), weights=dict, run=run)


def start(config: dict[str, Any]) -> Published | Declined:
    """A and B where training starts; of each conjugate pair the published code keeps the other one, LegS excepted."""
    measure = config["measure"].removeprefix("diag-")
    if measure not in get_args(get_type_hints(H3.__init__)["init"]) or measure == "diag":
        return Declined(f"{config['measure']}: a random start, or none for a diagonal system")
    mixer = H3(1, d_state=config["N"], init=measure)

    def run(mixer: Any, tensors: Tensors) -> dict[str, Tensor]:
        frequency = mixer.A_imag[0] * (-1 if measure == "legs" else 1)
        return {"output": torch.stack([-mixer.A_real[0].exp(), frequency], dim=-1), "param/B": mixer.B[0]}

    return Published(mixer, weights=lambda _: dict(mixer.state_dict()), run=run)


def diagonal_kernel(config: dict[str, Any]) -> Published:
    """The taps of the diagonal system; `channels` of H features are one of ours with channels * H heads."""
    channels, features = config.get("channels", 1), config["H"]
    names = {"H", "N", "L", "mode", "channels", "force_real"}
    options = {name: value for name, value in config.items() if name not in names}
    mixer = build_h3({**options, "n_ssm": config.get("n_ssm") or features, "d_model": channels * features,
                      "d_state": config["N"]})  # fmt: skip

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = {name: theirs[f"kernel.{published}"] for published, name in KERNEL.items()}
        ours |= {"log_dt": ours["log_dt"].repeat(channels), "C": ours["C"].flatten(0, 1), "A_imag": -ours["A_imag"]}
        if config.get("force_real"):
            ours["A_imag"] = torch.zeros_like(ours["A_imag"])
        return dict(mixer.state_dict()) | ours

    return Published(
        mixer, weights, run=lambda mixer, _: {"output": mixer.kernel(config["L"]).unflatten(0, (channels, features))}
    )


def shift_kernel(config: dict[str, Any]) -> Published:
    """The taps of the shift, and zeros."""
    channels, features, length = config.get("channels", 1), config["H"], config["L"]
    mixer = build_h3({"d_model": channels * features, "d_state": config["N"], "l_max": length})

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = {"shift_B": theirs["kernel.B"].repeat(channels, 1), "shift_C": theirs["kernel.C"].flatten(0, 1)}
        return dict(mixer.state_dict()) | ours

    def run(mixer: Any, tensors: Tensors) -> dict[str, Tensor]:
        taps = mixer.shift_kernel()
        return {"output": pad(taps, (0, length - taps.shape[1])).unflatten(0, (channels, features))}

    return Published(mixer, weights, run)


def moving_average(config: dict[str, Any]) -> Published:
    """Mega's damped moving average as a kernel of H3's library: a diagonal system with real modes."""
    channels, length = config.get("channels", 1), config["L"]

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        copies = len(module.gamma) // len(module.alpha)
        p = module.delta.sigmoid()[..., 0].expand(module.alpha.shape[:2])
        log_q = torch.log(1 - p * module.alpha.sigmoid()[..., 0])
        real = (log_q.repeat(copies, 1), (p * module.beta[..., 0]).repeat(copies, 1), module.gamma / 2)
        system = ops.ModalSystem(*(torch.complex(x, torch.zeros_like(x)) for x in real))
        system = system._replace(C=system.C * config["N"] ** -0.5)
        return {
            "output": ops.modal_kernel(system, min(length, config.get("l_max") or length)).unflatten(0, (channels, -1))
        }

    names = ("alpha", "beta", "delta", "gamma")
    return Published(
        Parameters(*names), weights=lambda theirs: {name: theirs[f"kernel.{name}"] for name in names}, run=run
    )


def layer(config: dict[str, Any]) -> Published:
    """The layer, its kernels, and its recurrence with the states before and after the steps."""
    parallel = build_h3({name: value for name, value in config.items() if name != "force_real"})
    recurrent = build_h3({n: v for n, v in config.items() if n not in ("l_max", "bandlimit", "force_real")})
    mixers = nn.ModuleDict({"parallel": parallel, "recurrent": recurrent})
    rules = h3_rules(parallel, config)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = assemble(rules, theirs)
        views = {"recurrent": ours, "parallel": ours}
        if config.get("force_real"):
            views["parallel"] = ours | {"A_imag": torch.zeros_like(ours["A_imag"])}
        return {f"{view}.{name}": value for view, tensors in views.items() for name, value in tensors.items()}

    def run(mixers: Any, tensors: Tensors) -> dict[str, Tensor]:
        x, mixer = tensors["input"], mixers["parallel"]
        memory, shift = mixer.kernel(x.shape[1]), mixer.shift_kernel()
        taps = memory.shape[1]
        found = {"output": mixer(x), "kernel_diag": memory}
        found["kernel_shift"] = pad(shift, (0, max(0, taps - shift.shape[1])))[:, :taps]
        return found | recurrence(mixers["recurrent"], x, tensors)

    return Published(mixers, weights, run)


def recurrence(mixer: H3, x: Tensor, tensors: Tensors) -> dict[str, Tensor]:
    """Read the first positions, step through the others: outputs, and the states at the times that the file has."""
    if "step_output" not in tensors:
        return {}
    times = sorted(int(name.rpartition("/")[2]) for name in tensors if name.startswith("state_diag/"))
    first, empty = times[0], mixer.init_state(len(x))
    before = mixer.prefill(x[:, : first - 1], empty)[1] if first > 1 else empty
    y, state = mixer.prefill(x[:, :first], empty)
    outputs, reached = [y], {first: states(mixer, before, state)}
    for t in range(first + 1, x.shape[1] + 1):
        before = state
        y, state = mixer.step(x[:, t - 1], state)
        outputs.append(y[:, None])
        reached[t] = states(mixer, before, state)
    # the published steps overwrite their state, so that the files hold the last one under the first time too
    overwritten = torch.equal(tensors[f"state_diag/{first}"], tensors[f"state_diag/{times[-1]}"])
    found = {"step_output": torch.cat(outputs, dim=1)}
    for t in times:
        found |= {f"state_{name}/{t}": value for name, value in reached[times[-1] if overwritten else t].items()}
    return found


def states(mixer: H3, before: H3State, after: H3State) -> dict[str, Tensor]:
    """The published states: of the shift B' filtered by the last keys, of which ours leaves out the one that leaves."""
    keys = torch.cat([before.keys[..., :1], after.keys], dim=-1)
    return {
        "shift": ops.long_conv(keys.flip(-1), mixer.shift_B),
        "diag": torch.view_as_real(after.modes),
    }
