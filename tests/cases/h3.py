"""H3 in the configurations in which it is tested."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import H3, H3Options

CASES: Cases = {
    "h3": lambda: H3(WIDTH, d_state=6, dt_min=0.05, dt_max=0.5),
    "h3-inv-heads": lambda: H3(WIDTH, d_state=4, head_dim=2, init="inv", discretisation="zoh", lr=1e-3),
    "h3-inv2-tied": lambda: H3(
        WIDTH, d_state=4, init="inv2", dt_max=0.3, options=H3Options(n_ssm=2, real_transform="softplus")
    ),
    "h3-quad-window": lambda: H3(
        WIDTH,
        d_state=6,
        init="quad",
        dt_min=0.2,
        options=H3Options(kernel_length=10, real_transform="none"),
        dt_max=0.4,
    ),
    "h3-real": lambda: H3(WIDTH, d_state=4, init="real"),
    "h3-legs-short-window-heads": lambda: H3(
        WIDTH,
        d_state=6,
        head_dim=4,
        init="legs",
        dt_max=0.3,
        options=H3Options(kernel_length=3, real_transform="sigmoid"),
    ),
    "h3-diag-bandlimit": lambda: H3(
        WIDTH,
        d_state=8,
        init="diag",
        dt_min=0.1,
        dt_max=0.2,
        options=H3Options(bandlimit=0.5, real_transform="relu"),
    ),
}

FINITE_STATE = set(CASES)

LEARNERS: Learners = {"H3": lambda width: H3(width, d_state=16)}
