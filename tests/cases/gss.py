"""GSS in the configurations in which it is tested."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import GSS

CASES: Cases = {
    "gss": lambda: GSS(WIDTH, expand=1.5, d_ssm=6, d_state=5),
    "gss-ema": lambda: GSS(WIDTH, expand=2.0, d_ssm=6, kernel="ema", n_heads=3),
    "gss-reverse": lambda: GSS(WIDTH, expand=2.0, d_ssm=5, d_state=4, imag_transform="none", reverse=True),
}

FINITE_STATE = {"gss", "gss-ema"}

LEARNERS: Learners = {"GSS": lambda width: GSS(width, expand=2.0, d_ssm=16, d_state=16)}
