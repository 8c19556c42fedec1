"""Mixers that are one long convolution, in the configurations in which they are tested: LongConv, SGConv."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import LongConv, SGConv
from longreach.mixers import SGConvOptions as Options

CASES: Cases = {
    "long_conv": lambda: LongConv(WIDTH, kernel_length=64),
    "long_conv-time": lambda: LongConv(
        WIDTH,
        kernel_length=9,
        init="random",
        threshold=1e-3,
        smoothing="time",
        smoothing_width=3,
        dropout=0.2,
        lr=1e-3,
    ),
    "long_conv-frequency-bidirectional": lambda: LongConv(WIDTH, kernel_length=13, smoothing="frequency", causal=False),
    "sgconv": lambda: SGConv(WIDTH, kernel_length=64, piece_length=8),
    "sgconv-sum-bidirectional": lambda: SGConv(
        WIDTH,
        kernel_length=17,
        piece_length=4,
        causal=False,
        options=Options(combine="sum", init="cosine", decay="power", decay_min=0.5, decay_max=1.5, lr=None),
    ),
    "sgconv-nearest": lambda: SGConv(
        WIDTH,
        kernel_length=6,
        piece_length=3,
        options=Options(interpolation="nearest", decay="fixed-power", n_scales=2, first_scale=1),
    ),
    "sgconv-sum": lambda: SGConv(
        WIDTH, kernel_length=11, piece_length=3, options=Options(combine="sum", decay_max=1.0, decay_min=3.0)
    ),
}

LEARNERS: Learners = {
    "LongConv": lambda width: LongConv(width, kernel_length=64),
    "SGConv": lambda width: SGConv(width, kernel_length=64, piece_length=8),
}
