"""The configurations in which every mixer is tested; whoever adds a mixer or an option adds a line.

Every public mixer has a case, and every option of its constructor is set to each of its choices in some case:
test_mixers.py looks at the signatures.  Sequence lengths in the tests reach 40; options should be smaller than that
where they can be, so that they bite.
"""

from collections.abc import Callable

from longreach.hippo import DiagonalInit
from longreach.mixers import S4D, Attention, FilterOptions, Hyena, SequenceMixer
from longreach.mixers import S4DOptions as Options

WIDTH = 8
"""d_model in every case."""

CASES: dict[str, Callable[[], SequenceMixer]] = {
    "attention": lambda: Attention(WIDTH, n_heads=2),
    "attention-grouped-window": lambda: Attention(WIDTH, n_kv_heads=2, window=5, rotary_base=100.0, dropout=0.3),
    "attention-alibi": lambda: Attention(WIDTH, n_heads=4, n_kv_heads=1, position="alibi", bias=True),
    "attention-alibi-window": lambda: Attention(WIDTH, n_heads=2, position="alibi", window=7),
    "attention-plain": lambda: Attention(WIDTH, n_heads=1, position="none", bias=True),
    "attention-bidirectional": lambda: Attention(WIDTH, n_heads=2, causal=False),
    "attention-bidirectional-window": lambda: Attention(WIDTH, n_heads=2, position="alibi", window=12, causal=False),
    "s4d": lambda: S4D(WIDTH, d_state=6),
    "s4d-lin-bidirectional": lambda: S4D(
        WIDTH,
        d_state=6,
        init="lin",
        bidirectional=True,
        init_options=DiagonalInit(B="random", normalise=True),
        options=Options(real_transform="relu", dt_transform="softplus", dt_fast=True, imag_transform="softplus"),
    ),
    "s4d-inv": lambda: S4D(
        WIDTH,
        d_state=6,
        init="inv",
        discretisation="bilinear",
        n_ssm=2,
        init_options=DiagonalInit(B="alternating", real_scale=1.2),
        options=Options(real_transform="sigmoid", imag_transform="relu", dt_tied=False),
    ),
    "s4d-inv2": lambda: S4D(
        WIDTH,
        d_state=6,
        init="inv2",
        dt_min=0.3,
        dt_max=0.6,
        init_options=DiagonalInit(B="unit-cw", real_random=True, B_scale=2.0),
        options=Options(real_transform="softplus", dt_transform="none"),
    ),
    "s4d-quad-window": lambda: S4D(
        WIDTH,
        d_state=6,
        init="quad",
        dt_min=0.2,
        dt_max=0.5,
        init_options=DiagonalInit(B="unit-ccw", imag_random=True, imag_scale=0.5),
        options=Options(kernel_length=10, rate=2.0, real_transform="none", dt_transform="sigmoid"),
    ),
    "s4d-quad-window-bidirectional": lambda: S4D(
        WIDTH, d_state=4, init="quad", bidirectional=True, options=Options(kernel_length=14)
    ),
    "s4d-real": lambda: S4D(WIDTH, d_state=4, init="real", options=Options(real=True)),
    "s4d-rand": lambda: S4D(
        WIDTH,
        d_state=6,
        init="rand",
        init_options=DiagonalInit(B="legs"),
        options=Options(imag_transform="exp"),
    ),
    "s4d-fourier-bandlimit": lambda: S4D(
        WIDTH, d_state=8, init="fourier", dt_min=0.05, dt_max=0.1, options=Options(bandlimit=0.2)
    ),
    "s4d-diag": lambda: S4D(
        WIDTH,
        d_state=4,
        init="diag",
        dt_min=0.3,
        dt_max=0.6,
        init_options=DiagonalInit(imag_scale=0.1),
        options=Options(dt_transform="relu", imag_transform="sigmoid"),
    ),
    "s4d-hippo": lambda: S4D(WIDTH, d_state=4, init="hippo", n_ssm=4, discretisation="bilinear"),
    "s4d-all": lambda: S4D(WIDTH, d_state=4, init="all"),
    "hyena": lambda: Hyena(WIDTH, max_length=64, filter=FilterOptions(width=16)),
    "hyena-3": lambda: Hyena(
        WIDTH,
        max_length=37,
        order=3,
        short_width=1,
        filter=FilterOptions(width=5, embedding_dim=3, inner_layers=0, sine_frequency=3.0, lr=1e-2, skip=False),
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
        WIDTH, max_length=64, filter=FilterOptions(width=6, modulate=False, normalized=True), activation="silu"
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
}

FINITE_STATE = {case for case in CASES if case.startswith("s4d")}
"""Cases whose state does not grow with the length of what was read."""
