"""Monarch Mixer in the configurations in which it is tested."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import FilterOptions, MonarchMixer

CASES: Cases = {
    "monarch_mixer": lambda: MonarchMixer(WIDTH, max_length=40, filter=FilterOptions(width=6)),
    "monarch_mixer-causal": lambda: MonarchMixer(
        WIDTH,
        max_length=64,
        causal=True,
        filter=FilterOptions(width=6, embedding_dim=5, sine_frequency=5.0, weight_decay=True, lr=1e-3),
        dropout=0.2,
    ),
    "monarch_mixer-magnet": lambda: MonarchMixer(
        WIDTH,
        max_length=37,
        residual_conv=False,
        short_width=1,
        filter=FilterOptions(
            network="magnet",
            width=5,
            n_inner_layers=1,
            decay_order="stacked",
            modulate=False,
            normalise=True,
            skip=False,
        ),
    ),
    "monarch_mixer-sine-causal": lambda: MonarchMixer(
        WIDTH,
        max_length=50,
        causal=True,
        filter=FilterOptions(
            network="sine",
            width=5,
            shift=0.05,
            fast_decay=0.2,
            slow_decay=1.0,
            target=1e-3,
            features_lr=0.0,
            decay_lr=1e-3,
        ),
    ),
}

LEARNERS: Learners = {"MonarchMixer": lambda width: MonarchMixer(width, max_length=64, causal=True)}
