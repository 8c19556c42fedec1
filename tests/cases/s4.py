"""S4 in the configurations in which it is tested."""

from cases import WIDTH, Cases, Learners
from longreach.hippo import DiagonalInit
from longreach.mixers import S4
from longreach.mixers import S4Options as Options

CASES: Cases = {
    "s4": lambda: S4(WIDTH, d_state=6),
    "s4-untied-mixture": lambda: S4(
        WIDTH,
        d_state=4,
        init=["legs", "inv"],
        rank=2,
        n_ssm=2,
        init_options=DiagonalInit(B="alternating", imag_random=True),
        options=Options(dt_tied=False, dt_transform="none"),
    ),
    "s4-lin-bidirectional": lambda: S4(
        WIDTH,
        d_state=6,
        init="lin",
        init_options=DiagonalInit(B="random", normalise=True),
        causal=False,
        dt_min=0.05,
        dt_max=0.3,
        options=Options(P_scale=0.5, real_transform="relu", imag_transform="softplus", dt_transform="relu"),
    ),
    "s4-window": lambda: S4(
        WIDTH,
        d_state=4,
        init="rand",
        init_options=DiagonalInit(B="legs", real_random=True),
        dt_min=0.1,
        options=Options(
            kernel_length=10, rate=2.0, dt_transform="sigmoid", real_transform="none", imag_transform="exp"
        ),
    ),
    "s4-transforms": lambda: S4(
        WIDTH,
        d_state=4,
        init="quad",
        init_options=DiagonalInit(B="unit-cw", imag_scale=0.2, real_scale=1.5),
        dt_min=0.2,
        dt_max=0.5,
        options=Options(dt_fast=True, dt_transform="softplus", real_transform="softplus", imag_transform="sigmoid"),
    ),
    "s4-rank-two": lambda: S4(
        WIDTH,
        d_state=4,
        init=["legt", "lin"],
        rank=2,
        init_options=DiagonalInit(B="unit-ccw", B_scale=2.0),
        options=Options(real_transform="sigmoid", imag_transform="relu"),
    ),
}

FINITE_STATE = set(CASES)

LEARNERS: Learners = {"S4": lambda width: S4(width, d_state=16)}
