"""Hyperparameters of long convolutions and of gated systems: of LongConv as published, of the others S4's.

Nobody has published how H3, Hyena, GSS, BiGS, Monarch Mixer, StripedHyena or HiPPO's own network are trained on these
tasks, and the configurations of SGConv and CKConv are not at hand: they get the depth, width and schedule of S4.
"""

from collections.abc import Mapping

from longreach.bench.lra.recipes import of
from longreach.bench.lra.state_spaces import S4_CODE, S4_ROWS, Blocks, Row, StateSpace
from longreach.bench.lra.tasks import Config, Reading

SAFARI = "github.com/HazyResearch/safari, configs/experiment/lra/long-conv-lra-*.yaml"
LONG_CONV_ROWS = {
    "listops": Row(8, 128, 0, 0.0, 0.01, 50, 80_000, 10_000, 0.05, False, causal=True),
    "text": Row(6, 256, 0, 0.0, 0.01, 16, 50_000, 5_000, 0.05, True, causal=True),
    "retrieval": Row(6, 256, 0, 0.0, 0.01, 64, 50_000, 2_500, 0.05, True, causal=True),
    "image": Row(6, 512, 0, 0.1, 0.01, 50, 200_000, 1_000, 0.05, False, causal=True, norm="layer"),
    "pathfinder": Row(6, 256, 0, 0.0, 0.004, 64, 500_000, 2_500, 0.03, True, pool="last"),
    "path-x": Row(6, 256, 0, 0.0, 5e-4, 16, 500_000, 10_000, 0.05, True),
}
LONG_CONV_KERNELS = {
    "listops": (5e-4, 0.002, 0.2),
    "text": (1e-3, 0.003, 0.2),
    "retrieval": (1e-4, 0.004, 0.1),
    "image": (1e-3, 0.003, 0.2),
    "pathfinder": (1e-3, 0.001, 0.3),
    "path-x": (5e-4, 0.001, 0.3),
}
"""Learning rate, threshold and dropout of the taps."""


def long_conv_blocks(row: Row, reading: Reading, task: str) -> tuple[Config, Config]:
    """Explicit taps, as many as positions."""
    lr, threshold, dropout = LONG_CONV_KERNELS[task]
    taps = {"kernel_length": reading.length, "lr": lr, "threshold": threshold, "dropout": dropout}
    return of("LongConv", {**taps, "causal": row.causal}), of("longreach.models.GLU", {"dropout": row.dropout})


def with_glu(name: str, lengths: tuple[str, ...] = (), arguments: Mapping[str, object] = {}) -> Blocks:
    """A mixer behind which there is the gated linear map of S4; `lengths` name arguments that are the task's length."""

    def blocks(row: Row, reading: Reading, task: str) -> tuple[Config, Config]:
        sized = dict.fromkeys(lengths, reading.length + 1)
        return of(name, {**sized, **arguments}), of("longreach.models.GLU", {"dropout": row.dropout})

    return blocks


def gss_blocks(row: Row, reading: Reading, task: str) -> tuple[Config, Config]:
    """Gated state spaces of 512 modes and 256 channels, or in a narrow model of fewer."""
    sizes = {"d_state": min(512, 2 * row.width), "d_ssm": min(256, row.width)}
    return of("GSS", sizes), of("longreach.models.GLU", {"dropout": row.dropout})


def _of_s4(blocks: Blocks) -> StateSpace:
    return StateSpace(blocks, S4_ROWS, f"none is published; taken from S4: {S4_CODE}", published=False)


CONVOLUTIONS = {
    "sgconv": _of_s4(with_glu("SGConv", ("kernel_length",), {"causal": False})),
    "longconv": StateSpace(
        long_conv_blocks, LONG_CONV_ROWS, SAFARI, differences=("one convolution a channel instead of two",)
    ),
    "ckconv": _of_s4(with_glu("CKConv", ("kernel_length",))),
    "butterfly": _of_s4(with_glu("ButterflyConv", ("max_length",))),
    "hippo": _of_s4(with_glu("HiPPOMemory")),
    "h3": _of_s4(with_glu("H3")),
    "hyena": _of_s4(with_glu("Hyena", ("max_length",))),
    "striped-hyena": _of_s4(with_glu("StripedHyena")),
    "monarch-mixer": _of_s4(with_glu("MonarchMixer", ("max_length",))),
    "gss": _of_s4(gss_blocks),
    "bigs": _of_s4(with_glu("BiGS")),
}
