"""Liquid-S4: the paper's recurrence, the authors' code, and the recurrence in s5-pytorch.

    ref_*         an independent implementation of the paper's equations
    S4            github.com/raminmh/liquid-s4, src/models/sequence/ss/s4.py: S4 with a liquid term of another meaning
    S5            github.com/i404788/s5-pytorch with `liquid`, see adapters/s5.py

The authors' S4 has C only as C - C abar^L, L in a buffer.
"""

from typing import Any

import torch
from torch import Tensor, nn

from adapters import Declined, Published, Tensors, s5
from adapters.s4d import ACTIVATIONS
from longreach.mixers import S4, LiquidS4, S4Options
from longreach.mixers.s4 import S4Parameters
from longreach.models.published_liquid_s4 import (
    Contraction,
    LiquidStart,
    PublishedLiquid,
    combinations,
    published_liquid_term,
)
from longreach.ops.dplr import dplr_whole_output

CONTRACTIONS: dict[str | None, Contraction] = {"lecun": "lecun", "tanh": "tanh"}
START: list[str] = ["extra/w0", "extra/B0", "extra/C0", "extra/log_dt0"]
AROUND = ("gate", "bottleneck", "hyper_act", "weight_norm")


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published class and options."""
    if "s5-pytorch" in metadata["source"]:
        return s5.adapt(config, metadata)
    if "reference" in metadata["source"]:
        return recurrence(config)
    if config.get("channels", 1) != 1:
        return Declined("channels: the liquid terms of the published code fail on more than one")
    for option in AROUND:
        if config.get(option):
            return Declined(f"{option}: a part of the block around the system, nothing of Liquid-S4")
    if config.get("mode", "nplr") != "nplr":
        return Declined("mode: the published liquid term belongs to the S4 kernel")
    return published(config)


def recurrence(config: dict[str, Any]) -> Published:
    """The mixer itself."""
    mixer = LiquidS4(
        config["H"], d_state=2 * config["N"], order=config.get("order"), discretisation=config.get("disc", "zoh")
    )

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = {name: theirs[name] for name in ("B", "D", "log_dt")}
        return ours | {"A_real": theirs["A_log_re"], "A_imag": theirs["A_im"], "C": theirs["C"][None]}

    return Published(mixer, weights, lambda mixer, tensors: {"output": mixer(tensors["input"].mT).mT})


def published(config: dict[str, Any]) -> Published:
    """The authors' layer: S4, what their liquid kernel adds, an activation, a linear map with activation."""
    width, final = config["d_model"], config.get("postact", "glu")
    transposed, activation = config.get("transposed", True), ACTIVATIONS[config.get("activation", "gelu")]
    mixer = S4(
        width,
        d_state=config["d_state"],
        causal=not config.get("bidirectional", False),
        n_ssm=config.get("n_ssm"),
        rank=config.get("rank", 1),
        options=S4Options(kernel_length=config.get("l_max")),
    )
    options = None
    if config.get("liquid_kernel") is not None:
        options = PublishedLiquid(
            kernel=config["liquid_kernel"],
            degree=config.get("liquid_degree", 2),
            all_combinations=config.get("allcombs", True),
            contraction=CONTRACTIONS.get(config.get("lcontract"), "identity"),
        )
    linear = nn.Linear(width, (2 if final == "glu" else 1) * width)
    name = "output_linear" if final is None else "output_linear.0"

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        system = {
            "inv_dt": theirs["kernel.kernel.log_dt"].reshape(width, -1),
            "A_real": theirs["kernel.kernel.inv_w_real"],
            "A_imag": -theirs["kernel.kernel.w_imag"],
            "B": theirs["kernel.kernel.B"][0],
            "P": theirs["kernel.kernel.P"],
        }
        stored = S4Parameters(**system, C=theirs["kernel.kernel.C"]).sampled(S4Options())
        C = torch.view_as_real(dplr_whole_output(stored, int(theirs["kernel.kernel.L"])).resolve_conj())
        outer = {"linear.weight": theirs[f"{name}.weight"].view(linear.weight.shape)}
        outer["linear.bias"] = theirs[f"{name}.bias"].flatten()
        return {f"s4.{key}": value for key, value in (system | {"C": C, "D": theirs["D"][0]}).items()} | outer

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        u = tensors["input"] if transposed else tensors["input"].mT
        kernels = module["s4"].kernels(u.shape[-1])
        results = {"kernel": kernels, "extra/C_true": module["s4"].C}
        y = module["s4"](u.mT).mT
        if options is not None:
            y = y + published_liquid_term(u, kernels, before_training(tensors, width), options)
            for degree in range(2, options.degree + 1):
                if f"extra/comb_indices_{degree}" in tensors:
                    results[f"extra/comb_indices_{degree}"] = combinations(u.shape[-1], degree)
        y = ACTIVATIONS[final](module["linear"](activation(y.mT)))
        return results | {"output": y.mT if transposed else y}

    unused = {} if options is not None else dict.fromkeys(START, "there is no liquid term")
    return Published(nn.ModuleDict({"s4": mixer, "linear": linear}), weights, run, unchecked=unused)


def before_training(tensors: Tensors, width: int) -> LiquidStart:
    """What the authors' liquid term uses; feature h belongs to the independent system h mod n_ssm."""
    A, B, C = (torch.view_as_complex(tensors[name]) for name in START[:3])
    copies = width // len(A)
    return LiquidStart(A.repeat(copies, 1), B.repeat(copies, 1), C, tensors[START[3]].exp())
