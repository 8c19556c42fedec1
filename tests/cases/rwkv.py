"""The layers of RWKV in the configurations in which they are tested."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import RWKV4, RWKV5, RWKV6, RWKV7, RWKVChannelMix

CASES: Cases = {
    "rwkv4": lambda: RWKV4(WIDTH, layer=1, n_layers=3),
    "rwkv5": lambda: RWKV5(WIDTH, d_attention=12, head_dim=3, divisor=2.0, layer=1, n_layers=3),
    "rwkv6": lambda: RWKV6(
        WIDTH, d_attention=6, head_dim=2, divisor=0.5, share_rank=3, decay_rank=2, layer=1, n_layers=3
    ),
    "rwkv7": lambda: RWKV7(WIDTH, head_dim=4, decay_rank=3, rate_rank=2, gate_rank=5, layer=1, n_layers=3),
    "rwkv-channel-mix": lambda: RWKVChannelMix(WIDTH, layer=1, n_layers=3),
    "rwkv-channel-mix-ungated": lambda: RWKVChannelMix(WIDTH, d_inner=5, gated=False),
}

FINITE_STATE = set(CASES)

LEARNERS: Learners = {
    "RWKV4": RWKV4,
    "RWKV5": lambda width: RWKV5(width, head_dim=8),
    "RWKV6": lambda width: RWKV6(width, head_dim=8),
    "RWKV7": lambda width: RWKV7(width, head_dim=8),
    "RWKVChannelMix": RWKVChannelMix,
}
