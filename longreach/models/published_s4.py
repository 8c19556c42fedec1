"""How published S4 and S4D blocks are stored (state-spaces/s4).

    S4Block      models/s4/s4.py, kernels dplr (S4) and diag (S4D): convolution, GELU, linear map, GLU
    S4D          models/s4/s4d.py, the minimal version of the diagonal one

Either becomes a `Joint` of our mixer and GLU, which has no residual connection and no norm, as the published block.

A DPLR kernel stores C - C M^l instead of C, with l = `l_kernel`, the length at which the discrete Fourier transform of
its generating function does not wrap around.  Ours stores C, which belongs to all lengths.

Axes: c directions, d channels, s independent systems, n modes, r rank.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longreach import ops
from longreach.mixers.s4 import S4, S4Options, S4Parameters
from longreach.mixers.s4d import S4D, S4DOptions
from longreach.models.channel_mixers import GLU
from longreach.models.joint import Joint
from longreach.models.published_layout import Config, Layout, Rule, Shapes, completed, refuse_unknown

KERNEL = "layer.kernel."
DEFAULTS: dict[str, Any] = {
    "dt_transform": "exp",
    "real_transform": "exp",
    "imag_transform": "none",
    "dt_fast": False,
    "l_max": None,
    "disc": "zoh",
    "bandlimit": None,
    "dropout": 0.0,
}
ONLY = {
    "channels": 1, "final_act": "glu", "activation": "gelu", "mult_act": None, "gate": None, "bottleneck": None,
    "swap_channels": False, "weight_norm": False,
}  # fmt: skip
WITHOUT_EFFECT = {
    "_name_", "transposed", "tie_dropout", "initializer", "verbose", "backend", "drop_kernel", "lr", "wd", "dt_min",
    "dt_max", "init", "measure", "deterministic", "postact", "layer", "kernel", "rate",
}  # fmt: skip
"""Options of the start, of optimisers, of axes, and of what happens in training only."""
INFERRED = {"d_model", "d_state", "mode", "n_ssm", "rank", "bidirectional", "dt_tie", "is_real"}


def whole_output(
    parameters: S4Parameters, options: S4Options, kernel_length: Int[Tensor, ""]
) -> Float[Tensor, "c d n 2"]:
    """C from the published C - C M^l, at the sampling rate of `options`; C itself where `kernel_length` is 0."""
    length = round(int(kernel_length) / options.rate)
    if length == 0:
        return parameters.C
    C = ops.dplr_whole_output(parameters.sampled(options), length)
    return torch.view_as_real(C.resolve_conj()).to(parameters.C.dtype)


def essential(shapes: Shapes) -> dict[str, int]:
    """The tensors that `infer` looks at, and their numbers of axes."""
    real = f"{KERNEL}A_imag" not in shapes
    names = {"layer.D": 2, f"{KERNEL}C": 3 if real else 4, f"{KERNEL}A_real": 2, f"{KERNEL}inv_dt": 2}
    return names | ({f"{KERNEL}P": 4, f"{KERNEL}l_kernel": 0} if f"{KERNEL}P" in shapes else {})


def infer(shapes: Shapes) -> dict[str, Any]:
    """The options of a published block that can be read off its tensors."""
    (channels, d_model), (n_ssm, modes) = shapes["layer.D"], shapes[f"{KERNEL}A_real"]
    real, low_rank = f"{KERNEL}A_imag" not in shapes, shapes.get(f"{KERNEL}P")
    return {
        "d_model": d_model,
        "channels": channels,
        "d_state": modes if real else 2 * modes,
        "mode": "diag" if low_rank is None else "dplr",
        "rank": 1 if low_rank is None else low_rank[0],
        "n_ssm": n_ssm,
        "bidirectional": shapes[f"{KERNEL}C"][0] == 2 * channels,
        "dt_tie": shapes[f"{KERNEL}inv_dt"][1] == 1,
        "is_real": real,
    }


def build(config: Config, variant: str) -> Joint:
    """Ours for a published block."""
    refuse_unknown(config, INFERRED | WITHOUT_EFFECT | {*DEFAULTS, *ONLY}, ONLY, "an S4 block")
    given = DEFAULTS | dict(config)
    shared: dict[str, Any] = {
        "kernel_length": given["l_max"],
        "dt_tied": given["dt_tie"],
        **{name: given[name] for name in ("dt_fast", "dt_transform", "real_transform", "imag_transform")},
    }
    size: dict[str, Any] = {
        "d_state": given["d_state"],
        "n_ssm": given["n_ssm"],
        "causal": not given["bidirectional"],
    }
    d_model, real = given["d_model"], given["is_real"]
    start: Any = "real" if real else "lin"
    if given["mode"] == "dplr":
        refuse_unknown(config, set(config), {"bandlimit": None}, "a DPLR kernel")
        mixer = S4(d_model, init=start, rank=given["rank"], options=S4Options(**shared), **size)
    else:
        options = S4DOptions(bandlimit=given["bandlimit"], real=real, **shared)
        mixer = S4D(d_model, init=start, discretisation=given["disc"], options=options, **size)
    return Joint(mixer, GLU(d_model, dropout=float(given["dropout"])))


def rules(model: Joint, variant: str, config: Config) -> list[Rule]:
    """Where every tensor of a block comes from."""
    mixer = model.mixer
    shapes = {name: tuple(parameter.shape) for name, parameter in mixer.named_parameters()}
    found = [Rule("mixer.D", "layer.D", (1, mixer.d_model), lambda D: D[0])]
    found += [
        Rule(f"mixer.{name}", KERNEL + name, shapes[name]) for name in ("inv_dt", "A_real", "A_imag") if name in shapes
    ]
    found.append(Rule("mixer.B", f"{KERNEL}B", (1, *shapes["B"]), lambda B: B[0]))
    if isinstance(mixer, S4):
        others = ("inv_dt", "A_real", "A_imag", "B", "P", "l_kernel")
        view = partial(_whole_output_of, mixer.options)
        found.append(Rule("mixer.P", f"{KERNEL}P", shapes["P"]))
        found.append(Rule("mixer.C", f"{KERNEL}C", shapes["C"], view, tuple(KERNEL + name for name in others)))
    else:
        found.append(Rule("mixer.C", f"{KERNEL}C", shapes["C"]))
    return found + _linear_rules(mixer.d_model, (2 * mixer.d_model, mixer.d_model))


def _whole_output_of(options: S4Options, C: Tensor, *others: Tensor) -> Tensor:
    inv_dt, A_real, A_imag, B, P, kernel_length = others
    return whole_output(S4Parameters(inv_dt, A_real, A_imag, B[0], P, C), options, kernel_length)


def _linear_rules(d_model: int, shape: tuple[int, ...]) -> list[Rule]:
    ours, theirs = "channel_mixer.linear.", "output_linear.0."
    return [
        Rule(f"{ours}weight", f"{theirs}weight", shape, lambda weight: weight.flatten(1)),
        Rule(f"{ours}bias", f"{theirs}bias", (2 * d_model,)),
    ]


def tied(shapes: Shapes) -> dict[str, str]:
    """No tensor is stored twice."""
    return {}


def ignored(name: str, config: Config) -> bool:
    """There is no tensor without a use."""
    return False


def essential_minimal(shapes: Shapes) -> dict[str, int]:
    """The same for the minimal version."""
    return {"D": 1, "kernel.log_A_real": 2}


def infer_minimal(shapes: Shapes) -> dict[str, Any]:
    """The options of a minimal S4D that can be read off its tensors."""
    d_model, modes = shapes["kernel.log_A_real"]
    return {"d_model": d_model, "d_state": 2 * modes}


def build_minimal(config: Config, variant: str) -> Joint:
    """Ours for a minimal S4D."""
    known = {"d_model", "d_state", "dropout", "transposed", "dt_min", "dt_max", "lr"}
    refuse_unknown(config, known, {}, "a minimal S4D")
    d_model = config["d_model"]
    mixer = S4D(d_model, d_state=config["d_state"], init="lin")
    return Joint(mixer, GLU(d_model, dropout=float(config.get("dropout", 0.0))))


def rules_minimal(model: Joint, variant: str, config: Config) -> list[Rule]:
    """Where every tensor of a minimal S4D comes from: its Im A has the other sign, and B is one."""
    mixer = model.mixer
    shapes = {name: tuple(parameter.shape) for name, parameter in mixer.named_parameters()}
    found = [
        Rule("mixer.D", "D", shapes["D"]),
        Rule("mixer.inv_dt", "kernel.log_dt", (mixer.d_model,), lambda log_dt: log_dt[:, None]),
        Rule("mixer.A_real", "kernel.log_A_real", shapes["A_real"]),
        Rule("mixer.A_imag", "kernel.A_imag", shapes["A_imag"], torch.neg),
        Rule("mixer.B", "kernel.A_imag", shapes["A_imag"], _ones),
        Rule("mixer.C", "kernel.C", shapes["C"][1:], lambda C: C[None]),
    ]
    return found + _linear_rules(mixer.d_model, (2 * mixer.d_model, mixer.d_model, 1))


def _ones(like: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(like), torch.zeros_like(like)], dim=-1).detach()


LAYOUT = Layout(f"{KERNEL}inv_dt", ("s4",), essential, infer, completed, build, rules, tied, ignored)
MINIMAL = Layout(
    "kernel.log_A_real",
    ("s4d",),
    essential_minimal,
    infer_minimal,
    completed,
    build_minimal,
    rules_minimal,
    tied,
    ignored,
)
