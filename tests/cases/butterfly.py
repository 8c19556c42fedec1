"""The convolution by learned transforms in the configurations in which it is tested."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import ButterflyConv
from longreach.mixers import TransformOptions as Options

CASES: Cases = {
    "butterfly_conv": lambda: ButterflyConv(WIDTH, max_length=36, threshold=0.0),
    "butterfly_conv-tied": lambda: ButterflyConv(
        WIDTH,
        max_length=33,
        transform=Options(radix=4, per_channel=True, weights="level", lr=None),
        tied=True,
        two_sided=False,
        init="random",
        threshold=0.001,
        lr=1e-3,
    ),
    "butterfly_conv-blocks": lambda: ButterflyConv(
        WIDTH,
        max_length=34,
        transform=Options(radix=2, weights="block", additive=True, dropout=0.1),
        learned_inverse=True,
    ),
}

LEARNERS: Learners = {"ButterflyConv": lambda width: ButterflyConv(width, max_length=24)}
