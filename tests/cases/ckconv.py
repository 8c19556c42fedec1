"""CKConv and FlexConv in the configurations in which they are tested."""

from cases import WIDTH, Cases, Learners
from longreach.mixers import CKConv
from longreach.mixers import KernelOptions as Options

CASES: Cases = {
    "ckconv": lambda: CKConv(WIDTH, kernel_length=40, kernel=Options(width=6)),
    "ckconv-dense": lambda: CKConv(
        WIDTH, kernel_length=11, kernel=Options("relu", width=5, weight_norm=False), dense=True, dropout=0.2
    ),
    "ckconv-finer": lambda: CKConv(
        WIDTH, kernel_length=9, kernel=Options("leaky_relu", width=6, norm="layer"), bias=False, rate=0.5
    ),
    "ckconv-coarser": lambda: CKConv(
        WIDTH, kernel_length=64, kernel=Options("swish", width=6, n_layers=2, norm="batch"), rate=3.0
    ),
    "ckconv-fourier": lambda: CKConv(WIDTH, kernel_length=33, kernel=Options("random_fourier", width=6, frequency=1.0)),
    "flexconv": lambda: CKConv(
        WIDTH, kernel_length=40, kernel=Options("magnet", width=6), mask_width=0.2, mask_threshold=0.3
    ),
}

LEARNERS: Learners = {"CKConv": lambda width: CKConv(width, kernel_length=64, kernel=Options(width=16))}
