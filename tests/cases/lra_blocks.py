"""Attention over patterns of blocks in the configurations in which it is tested."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import BigBird, LocalAttention, Longformer, Reformer, Sinkhorn, SparseAttention, SparseOptions

CASES: Cases = {
    "bigbird": lambda: BigBird(WIDTH, n_heads=2, block_size=3, n_random=1),
    "bigbird-plain": lambda: BigBird(WIDTH, head_dim=3, block_size=2, seed=5, position="none", bias=True),
    "local": lambda: LocalAttention(WIDTH, n_heads=2, block_size=5),
    "local-neighbours": lambda: LocalAttention(
        WIDTH, head_dim=3, block_size=4, n_neighbours=2, position="none", bias=True
    ),
    "local-bidirectional": lambda: LocalAttention(WIDTH, n_heads=2, block_size=12, n_neighbours=1, causal=False),
    "longformer": lambda: Longformer(WIDTH, n_heads=2, window=6),
    "longformer-global": lambda: Longformer(WIDTH, n_heads=2, window=7, global_positions=(3, 0), bias=True),
    "longformer-dilated": lambda: Longformer(WIDTH, head_dim=3, window=6, dilation=3, position="none"),
    "longformer-bidirectional": lambda: Longformer(
        WIDTH, n_heads=2, window=4, dilation=2, global_positions=(0, 9), causal=False
    ),
    "reformer": lambda: Reformer(WIDTH, n_heads=2, n_buckets=4, window=3),
    "reformer-plain": lambda: Reformer(WIDTH, n_buckets=2, n_hashes=1, window=9, position="none", bias=True, seed=1),
    "reformer-bidirectional": lambda: Reformer(WIDTH, n_heads=2, n_buckets=2, n_hashes=3, window=5, causal=False),
    "sinkhorn": lambda: Sinkhorn(WIDTH, n_heads=2, block_size=3, max_length=47),
    "sinkhorn-plain": lambda: Sinkhorn(
        WIDTH, n_heads=1, block_size=5, max_length=40, n_iterations=0, position="none", bias=True
    ),
    "sinkhorn-bidirectional": lambda: Sinkhorn(
        WIDTH, n_heads=2, block_size=4, max_length=40, n_iterations=2, temperature=0.5, causal=False
    ),
    "sparse-fixed": lambda: SparseAttention(WIDTH, n_heads=2, stride=5, options=SparseOptions(n_summary=2)),
    "sparse-strided": lambda: SparseAttention(
        WIDTH, head_dim=3, pattern="strided", stride=4, position="none", bias=True
    ),
    "sparse-strided-window": lambda: SparseAttention(
        WIDTH, n_heads=2, pattern="strided", stride=3, options=SparseOptions(window=5)
    ),
    "sparse-class-token": lambda: SparseAttention(
        WIDTH, n_heads=2, stride=4, options=SparseOptions(n_summary=1, summarise_first=True, class_token=True)
    ),
}

LEARNERS: Learners = {
    "BigBird": lambda width: BigBird(width, n_heads=2, block_size=4, n_random=1),
    "LocalAttention": lambda width: LocalAttention(width, n_heads=2, block_size=8, n_neighbours=1),
    "Longformer": lambda width: Longformer(width, n_heads=2, window=12),
    "Sinkhorn": lambda width: Sinkhorn(width, n_heads=2, block_size=8, max_length=24),
    "SparseAttention": lambda width: SparseAttention(width, n_heads=2, stride=6, options=SparseOptions(n_summary=2)),
}

DETECTORS: Learners = {
    # one projection for queries and keys cannot prefer what is two positions back to what is one back
    "Reformer": lambda width: Reformer(width, n_heads=2, n_buckets=2, n_hashes=2, window=24),
}
