"""S5 in the configurations in which it is tested."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import S5
from longreach.mixers import S5Options as Options

CASES: Cases = {
    "s5": lambda: S5(WIDTH, d_state=8, n_blocks=2),
    "s5-bilinear-all-modes": lambda: S5(
        WIDTH,
        d_state=6,
        n_blocks=2,
        discretisation="bilinear",
        dt_min=0.01,
        dt_max=0.3,
        options=Options(conjugate_pairs=False, C_init="lecun_normal", groups="decay_B", ordinary_dt=True),
    ),
    "s5-clip-rate": lambda: S5(
        WIDTH, d_state=6, n_blocks=1, options=Options(clip=True, rate=2.0, C_init="complex_normal", groups="fast_B")
    ),
    "s5-liquid": lambda: S5(WIDTH, d_state=8, n_blocks=1, options=Options(liquid=True, groups="slow_BCD")),
    "s5-bidirectional": lambda: S5(WIDTH, d_state=8, n_blocks=4, causal=False),
    "s5-liquid-bidirectional": lambda: S5(
        WIDTH, d_state=4, n_blocks=1, causal=False, options=Options(liquid=True, conjugate_pairs=False)
    ),
}

FINITE_STATE = {name for name in CASES if "bidirectional" not in name}

LEARNERS: Learners = {"S5": lambda width: S5(width, d_state=32, n_blocks=2)}
