"""Attention in the configurations in which it is tested."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import Attention

CASES: Cases = {
    "attention": lambda: Attention(WIDTH, n_heads=2),
    "attention-grouped-window": lambda: Attention(WIDTH, n_kv_heads=2, window=5, rotary_base=100.0, dropout=0.3),
    "attention-alibi": lambda: Attention(WIDTH, n_heads=4, n_kv_heads=1, position="alibi", bias=True),
    "attention-alibi-window": lambda: Attention(WIDTH, n_heads=2, position="alibi", window=7),
    "attention-plain": lambda: Attention(WIDTH, n_heads=1, head_dim=6, position="none", bias=True),
    "attention-bidirectional": lambda: Attention(WIDTH, n_heads=2, causal=False),
    "attention-bidirectional-window": lambda: Attention(WIDTH, n_heads=2, position="alibi", window=12, causal=False),
}

LEARNERS: Learners = {"Attention": lambda width: Attention(width, n_heads=2)}
