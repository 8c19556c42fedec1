"""BiGS in the configurations in which it is tested."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import BiGS

CASES: Cases = {
    "bigs": lambda: BiGS(WIDTH, d_inner=10, d_state=4),
    "bigs-inv": lambda: BiGS(WIDTH, d_inner=3, d_state=5, init="inv", activation="gelu", dt_max=0.5),
    "bigs-lin": lambda: BiGS(WIDTH, d_state=3, init="lin", dt_min=0.1),
}

LEARNERS: Learners = {"BiGS": lambda width: BiGS(width, d_state=16, dt_min=0.2)}
