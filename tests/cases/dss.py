"""DSS in the configurations in which it is tested."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import DSS, DSSOptions

CASES: Cases = {
    "dss": lambda: DSS(WIDTH, max_length=40, d_state=4),
    "dss-rising": lambda: DSS(
        WIDTH, max_length=37, d_state=5, init="random", dt_min=0.1, dt_max=0.5, options=DSSOptions(epsilon=1e-5)
    ),
    "dss-bidirectional": lambda: DSS(
        WIDTH, max_length=40, d_state=4, causal=False, options=DSSOptions(separate_dt=False)
    ),
    "dss-exp": lambda: DSS(WIDTH, d_state=4, version="exp"),
    "dss-exp-re-im-bidirectional": lambda: DSS(WIDTH, d_state=4, version="exp-re-im", causal=False),
    "dss-exp-no-scale": lambda: DSS(WIDTH, d_state=4, version="exp-no-scale", options=DSSOptions(separate_dt=False)),
    "dss-clip": lambda: DSS(WIDTH, d_state=4, version="clip", init="random", options=DSSOptions(max_real=0.1)),
    "dss-clip-no-scale": lambda: DSS(WIDTH, d_state=4, version="clip-no-scale"),
}

FINITE_STATE = {name for name in CASES if "bidirectional" not in name}

LEARNERS: Learners = {"DSS": lambda width: DSS(width, max_length=24, d_state=16)}
