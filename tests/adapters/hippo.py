"""HiPPO as in github.com/state-spaces/s4 (matrices, their forms, starts) and HazyResearch/hippo-code (projections).

hippo.py          transition, rank_correction, nplr: A, B, P; W, P, B in eigenvectors whose phases are arbitrary
dplr.py           dplr: the starts of diagonal systems
model/hippo.py    HiPPO_LegT (with the matrices of LMU) and HiPPO_LegS: coefficients at all times, reconstruction
"""

from typing import Any

import torch
from torch import Tensor, nn

from adapters import Published, Tensors
from longreach.hippo import (
    DiagonalInit,
    MatrixDiscretisation,
    basis,
    diagonal_system,
    diagonalise,
    discretise_matrix,
    low_rank,
    project,
    project_scaled,
    scaled_basis,
    transition,
)

RULES: dict[str, MatrixDiscretisation] = {
    **dict.fromkeys(["euler", "forward_euler", "forward", "forward_diff"], "forward"),
    **dict.fromkeys(["backward", "backward_diff", "backward_euler"], "backward"),
    **dict.fromkeys(["bilinear", "tustin", "trapezoidal", "trapezoid"], "bilinear"),
    "zoh": "zoh",
}
ALIASES: dict[str, Any] = {"fout": "fourier", "foud": "fourier_diag"}
SINGLE_PRECISION = ("fourier", "fourier2", "fourier_decay")
"""Measures whose P is published in float32, which is how well all that follows from it can agree."""
PHASES = "published with eigenvectors of the wrong half of the space that is at rest: they do not give A back"


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """Ours for the published function."""
    if "measure" in config and "dtype" in config:
        return matrices(ALIASES.get(config["measure"], config["measure"]), config)
    if "discretization" in config:
        return scaled(config) if "max_length" in config else windowed(config)
    return starts(config)


def nothing(theirs: Tensors) -> dict[str, Tensor]:
    """There are no weights."""
    return {}


def matrices(measure: Any, config: dict[str, Any]) -> Published:
    """A, B, their normal-plus-low-rank form in the published phases, and Markov parameters."""

    def run(_: nn.Module, tensors: Tensors) -> dict[str, Tensor]:
        A, B = transition(measure, config["N"])
        powers, value = [], B
        for k in range(len(tensors["probe/markov"])):
            powers.append(value.sum() * 0.5**k / len(A))
            value = A @ value / len(A)
        results = {"A": A, "B": B, "probe/markov": torch.stack(powers)}
        if "P" not in tensors:
            return results
        parts = form(tensors, A, B)
        if measure in SINGLE_PRECISION:
            parts = {name: rounded_alike(part, tensors[name]) for name, part in parts.items()}
        return results | parts

    def form(tensors: Tensors, A: Tensor, B: Tensor) -> dict[str, Tensor]:
        P = low_rank(measure, config["N"])
        P = torch.cat([P, P.new_zeros(len(tensors["P"]) - len(P), len(A))])
        W, P_c, B_c, V = diagonalise(A, P, B)
        results = {"P": P, "W": torch.view_as_real(W)}
        if measure == "fourier_diag":
            return results
        products = {"inv/absB": B_c.abs(), "inv/absP": P_c.abs(), "inv/B_conjP": torch.view_as_real(B_c * P_c.conj())}
        phase = (V.conj() * torch.view_as_complex(tensors["V"])).sum(0)
        assert torch.allclose(phase.abs(), torch.ones_like(phase.abs()))
        B_c = B_c * phase.conj()
        turned = {
            "V": V * phase,
            "P_c": P_c * phase.conj(),
            "B_c": B_c,
            "B_c_clip2": torch.complex(B_c.real, B_c.imag.clamp(-2, 2)),
        }
        return results | products | {name: torch.view_as_real(value.resolve_conj()) for name, value in turned.items()}

    wrong = ("V", "P_c", "B_c", "B_c_clip2", "inv/absB", "inv/absP", "inv/B_conjP")
    return Published(
        nn.Identity(), nothing, run, unchecked=dict.fromkeys(wrong, PHASES) if measure == "fourier_diag" else {}
    )


def rounded_alike(actual: Tensor, expected: Tensor) -> Tensor:
    """What is expected, if that is what was found up to the rounding of float32."""
    torch.testing.assert_close(actual, expected.double(), rtol=1e-6, atol=1e-6)
    return expected


def starts(config: dict[str, Any]) -> Published:
    """The starts of diagonal systems and their inputs; the signs of the eigenvectors of LegS are arbitrary."""

    def run(_: nn.Module, tensors: Tensors) -> dict[str, Tensor]:
        results = {}
        for name in tensors:
            kind, choice = name.split("/")
            if kind == "B_init":
                system = diagonal_system("lin", config["N"], 1, DiagonalInit(B=choice))  # type: ignore[arg-type]
            else:
                system = diagonal_system(choice, config["N"], 1, DiagonalInit(normalise=kind == "B_norm"))  # type: ignore[arg-type]
            value = torch.view_as_real((system.A if kind == "A" else system.B)[0].resolve_conj())
            if choice == "legs" and kind != "A":
                value = value * (value * tensors[name]).sum(-1, keepdim=True).sign()
            results[name] = value.to(tensors[name].dtype)
        return results

    return Published(nn.Identity(), nothing, run)


def windowed(config: dict[str, Any]) -> Published:
    """A time-invariant projection, (length, batch) -> (length, batch, states)."""
    size, dt, rule = config["N"], config["dt"], RULES[config["discretization"]]
    measure: Any = config.get("measure", "lmu")

    def run(_: nn.Module, tensors: Tensors) -> dict[str, Tensor]:
        system = discretise_matrix(rule, *transition(measure, size), torch.tensor(dt, dtype=torch.float64))
        coefficients = project(tensors["input"].mT, measure, size, dt=dt, rule=rule)
        return {
            "dA": system.abar,
            "dB": system.bbar,
            "output": coefficients.transpose(0, 1),
            **reconstruction(basis("lmu", size, 1 - torch.arange(0, 1, dt, dtype=torch.float64)), coefficients),
        }

    return Published(nn.Identity(), nothing, run)


def scaled(config: dict[str, Any]) -> Published:
    """The projection on all of the past."""
    size, points = config["N"], config["max_length"]

    def run(_: nn.Module, tensors: Tensors) -> dict[str, Tensor]:
        A, B = transition("legs", size)
        coefficients = project_scaled(tensors["input"].mT, size, rule=RULES[config["discretization"]])
        functions = scaled_basis(size, torch.linspace(0, 1, points, dtype=torch.float64))
        return {
            "A": A,
            "B": B,
            "output": coefficients.transpose(0, 1),
            **reconstruction(functions, coefficients),
        }

    return Published(nn.Identity(), nothing, run)


def reconstruction(functions: Tensor, coefficients: Tensor) -> dict[str, Tensor]:
    """The basis, and the past as it is remembered at the end."""
    return {"eval_matrix": functions, "reconstruct_last": coefficients[:, -1] @ functions.mT}
