"""Mega in the configurations in which it is tested."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import Mega
from longreach.mixers import MegaOptions as Options

CASES: Cases = {
    "mega-chunks": lambda: Mega(WIDTH, d_value=6, d_key=4, d_state=3, chunk_size=3),
    "mega-rotary-laplace-chunks": lambda: Mega(
        WIDTH,
        d_key=4,
        d_state=2,
        chunk_size=9,
        weighting="laplace",
        position="rotary",
        options=Options(norm="scale", activation="gelu"),
    ),
    "mega-full-truncated": lambda: Mega(
        WIDTH,
        d_value=6,
        d_key=4,
        d_state=2,
        chunk_size=None,
        max_length=40,
        options=Options(kernel_length=5, norm=None, activation="tanh"),
    ),
    "mega-full-rotary-relu2": lambda: Mega(
        WIDTH,
        d_value=6,
        d_key=4,
        d_state=1,
        chunk_size=None,
        weighting="relu2",
        position="rotary",
        options=Options(norm="layer", norm_affine=False, activation="relu", feature_dropout=True, dropout=0.1),
    ),
    "mega-bidirectional-chunks": lambda: Mega(
        WIDTH,
        d_value=6,
        d_key=4,
        d_state=2,
        chunk_size=5,
        causal=False,
        options=Options(norm="rms", activation="identity", attention_dropout=0.2),
    ),
    "mega-bidirectional-laplace": lambda: Mega(
        WIDTH,
        d_value=6,
        d_key=4,
        d_state=2,
        chunk_size=None,
        max_length=64,
        weighting="laplace",
        causal=False,
        options=Options(kernel_length=4, norm="batch", activation="gelu_tanh", value_dropout=0.2),
    ),
}

FINITE_STATE = {"mega-chunks", "mega-rotary-laplace-chunks"}

LEARNERS: Learners = {"Mega": lambda width: Mega(width, d_key=16, d_state=4, chunk_size=8)}
