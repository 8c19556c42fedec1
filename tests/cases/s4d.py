"""S4D in the configurations in which it is tested."""

from cases import WIDTH, Cases, Learners
from longreach.hippo import DiagonalInit
from longreach.mixers import S4D
from longreach.mixers import S4DOptions as Options

CASES: Cases = {
    "s4d": lambda: S4D(WIDTH, d_state=6),
    "s4d-lin-bidirectional": lambda: S4D(
        WIDTH,
        d_state=6,
        init="lin",
        causal=False,
        init_options=DiagonalInit(B="random", normalise=True),
        options=Options(real_transform="relu", dt_transform="softplus", dt_fast=True, imag_transform="softplus"),
    ),
    "s4d-inv": lambda: S4D(
        WIDTH,
        d_state=6,
        init="inv",
        discretisation="bilinear",
        n_ssm=2,
        init_options=DiagonalInit(B="alternating", real_scale=1.2),
        options=Options(real_transform="sigmoid", imag_transform="relu", dt_tied=False),
    ),
    "s4d-inv2": lambda: S4D(
        WIDTH,
        d_state=6,
        init="inv2",
        dt_min=0.3,
        dt_max=0.6,
        init_options=DiagonalInit(B="unit-cw", real_random=True, B_scale=2.0),
        options=Options(real_transform="softplus", dt_transform="none"),
    ),
    "s4d-quad-window": lambda: S4D(
        WIDTH,
        d_state=6,
        init="quad",
        dt_min=0.2,
        dt_max=0.5,
        init_options=DiagonalInit(B="unit-ccw", imag_random=True, imag_scale=0.5),
        options=Options(kernel_length=10, rate=2.0, real_transform="none", dt_transform="sigmoid"),
    ),
    "s4d-quad-window-bidirectional": lambda: S4D(
        WIDTH, d_state=4, init="quad", causal=False, options=Options(kernel_length=14)
    ),
    "s4d-real": lambda: S4D(WIDTH, d_state=4, init="real", options=Options(real=True)),
    "s4d-rand": lambda: S4D(
        WIDTH,
        d_state=6,
        init="rand",
        init_options=DiagonalInit(B="legs"),
        options=Options(imag_transform="exp"),
    ),
    "s4d-fourier-bandlimit": lambda: S4D(
        WIDTH, d_state=8, init="fourier", dt_min=0.05, dt_max=0.1, options=Options(bandlimit=0.2)
    ),
    "s4d-diag": lambda: S4D(
        WIDTH,
        d_state=4,
        init="diag",
        dt_min=0.3,
        dt_max=0.6,
        init_options=DiagonalInit(imag_scale=0.1),
        options=Options(dt_transform="relu", imag_transform="sigmoid"),
    ),
    "s4d-hippo": lambda: S4D(WIDTH, d_state=4, init="hippo", n_ssm=4, discretisation="bilinear"),
    "s4d-all": lambda: S4D(WIDTH, d_state=4, init="all"),
}

FINITE_STATE = set(CASES)

LEARNERS: Learners = {"S4D": lambda width: S4D(width, d_state=16)}
