"""How published H3 layers are stored, and what ours are called (HazyResearch/H3 src/models/ssm/h3.py).

Three projections are one of ours, and A has the opposite imaginary part.  The output projection reads the values of a
head one by one (f h) where the layer was run in torch, and head by head (h f), as ours does, where it was run with the
fused kernel (use_fast_fftconv).  With heads of width 1 that is the same.

Axes: d model width, h heads, f values of a head.
"""

from typing import Any, get_args

from torch import Tensor

from longreach.errors import InputError
from longreach.hippo import Discretisation
from longreach.hippo.transforms import TRANSFORMS
from longreach.mixers.h3 import H3, H3Options
from longreach.models.published_layout import Config, Rule, Shapes, refuse_unknown

DEFAULTS: dict[str, Any] = {
    "d_state": 64,
    "l_max": None,
    "head_dim": 1,
    "use_fast_fftconv": False,
    "n_ssm": None,
    "disc": "bilinear",
    "real_type": "exp",
    "bandlimit": None,
    "lr": None,
}
"""`d_model` has none."""

ONLY = {"mode": "diag", "force_real": False}
"""Options of which the published layer can generate with one value only."""

WITHOUT_EFFECT = {
    "_name_", "measure", "measure_args", "rank", "dt_min", "dt_max", "deterministic", "verbose", "dropout", "layer_idx",
    "device", "dtype",
}  # fmt: skip
"""Options that change nothing in what is computed, most of them because they say where the weights started."""

MARK = "ssm_k_kernel.kernel.B"
"""The tensor by which a layer is known."""

ESSENTIAL = {"q_proj.weight": 2, MARK: 2, "kernel.kernel.A_imag": 2, "D": 1}
"""The tensors that `infer` looks at, and their numbers of axes."""


def infer(shapes: Shapes) -> dict[str, Any]:
    """The options of a published layer that can be read off its tensors."""
    d_model, d_state = shapes[MARK]
    (n_heads,) = shapes["D"]
    return {
        "d_model": d_model,
        "d_state": d_state,
        "head_dim": d_model // n_heads,
        "n_ssm": shapes["kernel.kernel.A_imag"][0],
    }


def build_h3(config: Config) -> H3:
    """Ours for a published layer.  `config` must have `d_model`."""
    refuse_unknown(config, {"d_model", *DEFAULTS, *ONLY, *WITHOUT_EFFECT}, ONLY, "an H3 layer")
    given = DEFAULTS | dict(config)
    if given["disc"] not in get_args(Discretisation) or given["real_type"] not in TRANSFORMS:
        raise InputError(
            f"disc={given['disc']!r}, real_type={given['real_type']!r}: H3 offers {get_args(Discretisation)} and "
            f"{tuple(TRANSFORMS)}"
        )
    return H3(
        given["d_model"],
        d_state=given["d_state"],
        head_dim=given["head_dim"],
        discretisation=given["disc"],
        lr=None if given["lr"] is None else float(given["lr"]),
        options=H3Options(
            kernel_length=given["l_max"],
            n_ssm=given["n_ssm"],
            real_transform=given["real_type"],
            bandlimit=given["bandlimit"],
        ),
    )


def h3_rules(mixer: H3, config: Config) -> list[Rule]:
    """Where every tensor of a layer comes from."""
    d, taps = mixer.shift_B.shape
    (heads, modes), systems = mixer.C.shape[:2], len(mixer.A_real)

    def by_head(weight: Tensor) -> Tensor:
        """Columns (f h) in the order (h f)."""
        return weight.unflatten(1, (mixer.head_dim, heads)).transpose(1, 2).flatten(1)

    projections = ("q_proj", "k_proj", "v_proj")
    return [
        *(Rule("qkv.weight", f"{name}.weight", (d, d)) for name in projections),
        *(Rule("qkv.bias", f"{name}.bias", (d,)) for name in projections),
        Rule("shift_B", MARK, (d, taps)),
        Rule("shift_C", "ssm_k_kernel.kernel.C", (1, d, taps), lambda C: C[0]),
        Rule("shift_D", "ssm_k_D", (d,)),
        Rule("log_dt", "kernel.kernel.log_dt", (heads,)),
        Rule("A_real", "kernel.kernel.inv_A_real", (systems, modes)),
        Rule("A_imag", "kernel.kernel.A_imag", (systems, modes), lambda frequency: -frequency),
        Rule("B", "kernel.kernel.B", (systems, modes, 2)),
        Rule("C", "kernel.kernel.C", (1, heads, modes, 2), lambda C: C[0]),
        Rule("D", "D", (heads,)),
        Rule(
            "out.weight",
            "output_linear.weight",
            (d, d),
            (lambda weight: weight) if config.get("use_fast_fftconv") else by_head,
        ),
        Rule("out.bias", "output_linear.bias", (d,)),
    ]
