"""Linear, low-rank and Fourier variants of attention in the configurations in which they are tested."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import LinearTransformer

CASES: Cases = {
    "linear-transformer": lambda: LinearTransformer(WIDTH, n_heads=2),
    "linear-transformer-bidirectional": lambda: LinearTransformer(
        WIDTH, n_heads=2, head_dim=3, causal=False, epsilon=1e-3, bias=True
    ),
}

FINITE_STATE = {"linear-transformer"}

LEARNERS: Learners = {}
DETECTORS: Learners = {"LinearTransformer": lambda width: LinearTransformer(width, n_heads=2)}
