"""Hyena in the configurations in which it is tested."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import FilterOptions, Hyena

CASES: Cases = {
    "hyena": lambda: Hyena(WIDTH, max_length=64, filter=FilterOptions(width=16)),
    "hyena-3": lambda: Hyena(
        WIDTH,
        max_length=37,
        order=3,
        short_width=1,
        filter=FilterOptions(width=5, embedding_dim=3, n_inner_layers=0, sine_frequency=3.0, lr=1e-2, skip=False),
        activation="gelu",
        dropout=0.3,
    ),
    "hyena-4-outer-mixing": lambda: Hyena(
        WIDTH,
        max_length=200,
        order=4,
        short_width=5,
        filter=FilterOptions(width=6, shift=0.05, features_lr=0.0, decay_lr=1e-3, decay_order="stacked"),
        activation="tanh",
        outer_mixing=True,
        stage_scale=True,
    ),
    "hyena-normalized": lambda: Hyena(
        WIDTH, max_length=64, filter=FilterOptions(width=6, modulate=False, normalise=True), activation="silu"
    ),
    "hyena-fast-decay": lambda: Hyena(
        WIDTH,
        max_length=64,
        filter=FilterOptions(width=6, fast_decay=0.1, slow_decay=0.8, target=1e-3),
        activation="sigmoid",
    ),
    "hyena-3-stage-scale": lambda: Hyena(
        WIDTH, max_length=48, order=3, stage_scale=True, activation="relu", filter=FilterOptions(width=6)
    ),
    "hyena-elu": lambda: Hyena(WIDTH, max_length=48, activation="elu", filter=FilterOptions(width=6)),
    "hyena-squared-relu": lambda: Hyena(
        WIDTH, max_length=48, activation="squared_relu", outer_mixing=True, filter=FilterOptions(width=6)
    ),
    "hyena-3-magnet": lambda: Hyena(
        WIDTH, max_length=48, order=3, filter=FilterOptions(network="magnet", width=6, n_inner_layers=1)
    ),
    "hyena-sine": lambda: Hyena(
        WIDTH, max_length=48, filter=FilterOptions(network="sine", width=6, sine_frequency=5.0, weight_decay=True)
    ),
}

LEARNERS: Learners = {"Hyena": lambda width: Hyena(width, max_length=64)}
