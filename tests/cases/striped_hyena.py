"""StripedHyena in the configurations in which it is tested."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import StripedHyena

CASES: Cases = {
    "striped_hyena": lambda: StripedHyena(WIDTH, d_state=3),
    "striped_hyena-window": lambda: StripedHyena(
        WIDTH, d_state=2, n_filters=2, kernel_length=10, short_bias=False, short_width=4, bias=False
    ),
    "striped_hyena-real": lambda: StripedHyena(WIDTH, filter="real", d_state=4, short_width=1, out_bias=False),
    "striped_hyena-explicit": lambda: StripedHyena(WIDTH, filter="explicit", kernel_length=12, n_filters=4, skip=False),
}

FINITE_STATE = set(CASES)

LEARNERS: Learners = {"StripedHyena": lambda width: StripedHyena(width, short_width=1)}
"""Without the short convolution, which would do the task alone."""
