"""Liquid-S4 in the configurations in which it is tested."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import LiquidS4

CASES: Cases = {
    "liquid-s4": lambda: LiquidS4(WIDTH, d_state=4, dt_min=0.1, dt_max=0.5),
    "liquid-s4-cubic-lin": lambda: LiquidS4(
        WIDTH, d_state=6, order=3, init="lin", discretisation="bilinear", n_ssm=2, dt_min=0.1, dt_max=0.5
    ),
    "liquid-s4-full-inv": lambda: LiquidS4(WIDTH, d_state=4, order=None, init="inv", dt_max=0.3),
    "liquid-s4-bidirectional": lambda: LiquidS4(WIDTH, d_state=4, dt_min=0.1, dt_max=0.5, causal=False),
}

FINITE_STATE = {name for name in CASES if "bidirectional" not in name}

LEARNERS: Learners = {"LiquidS4": lambda width: LiquidS4(width, d_state=16)}
