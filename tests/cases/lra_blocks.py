"""Attention over patterns of blocks in the configurations in which it is tested."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import LocalAttention

CASES: Cases = {
    "local": lambda: LocalAttention(WIDTH, n_heads=2, block_size=5),
    "local-neighbours": lambda: LocalAttention(WIDTH, head_dim=3, block_size=4, n_neighbours=2, bias=True),
    "local-bidirectional": lambda: LocalAttention(WIDTH, n_heads=2, block_size=12, n_neighbours=1, causal=False),
}

LEARNERS: Learners = {
    "LocalAttention": lambda width: LocalAttention(width, n_heads=2, block_size=8, n_neighbours=1),
}
