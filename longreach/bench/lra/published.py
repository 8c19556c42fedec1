"""What papers report of the Long Range Arena, in percent; nothing here was measured by us.

A system that a paper could not train above chance is there as CHANCE.  Where numbers of the same system differ, each is
a row of its own with the paper that it is from.
"""

from typing import NamedTuple

from longreach.bench.lra.tasks import ARENA

CHANCE = None
ARENA_PAPER = "Tay et al. 2020, arXiv:2011.04006"
S4_PAPER = "Gu et al. 2021, arXiv:2111.00396"
S4D_PAPER = "Gu et al. 2022, arXiv:2206.11893"
MEGA_PAPER = "Ma et al. 2022, arXiv:2209.10655"
LONG_CONV_PAPER = "Fu, Epstein et al. 2023, arXiv:2302.06646"
CCNN_PAPER = "Romero et al. 2022, arXiv:2206.03398"


class PublishedRow(NamedTuple):
    """A system as a paper reports it."""

    system: str
    """A name of SYSTEMS."""
    label: str
    scores: tuple[float | None, ...]
    """In the order of ARENA; None is chance."""
    average: float | None
    """As the paper prints it: over five tasks in the first paper, over six with chance as 50 in later ones."""
    source: str

    def score(self, task: str) -> float | None:
        """The accuracy on a task; None if it is chance, or the task is none of the arena's."""
        return self.scores[ARENA.index(task)] if task in ARENA else None


def _row(system: str, label: str, source: str, average: float | None, *scores: float | None) -> PublishedRow:
    return PublishedRow(system, label, (*scores, *[CHANCE] * (len(ARENA) - len(scores))), average, source)


PUBLISHED = [
    _row("transformer", "Transformer", ARENA_PAPER, 54.39, 36.37, 64.27, 57.46, 42.44, 71.40),
    _row("transformer", "Transformer (trained for Luna)", MEGA_PAPER, 59.24, 37.11, 65.21, 79.14, 42.94, 71.83),
    _row("local", "Local attention", ARENA_PAPER, 46.06, 15.82, 52.98, 53.39, 41.46, 66.63),
    _row("sparse", "Sparse Transformer", ARENA_PAPER, 51.24, 17.07, 63.58, 59.59, 44.24, 71.71),
    _row("longformer", "Longformer", ARENA_PAPER, 53.46, 35.63, 62.85, 56.89, 42.22, 69.71),
    _row("linformer", "Linformer", ARENA_PAPER, 51.36, 35.70, 53.94, 52.27, 38.56, 76.34),
    _row("reformer", "Reformer", ARENA_PAPER, 50.67, 37.27, 56.10, 53.40, 38.07, 68.50),
    _row("sinkhorn", "Sinkhorn Transformer", ARENA_PAPER, 51.39, 33.67, 61.20, 53.83, 41.23, 67.45),
    _row("synthesizer", "Synthesizer", ARENA_PAPER, 52.88, 36.99, 61.68, 54.67, 41.61, 69.45),
    _row("bigbird", "BigBird", ARENA_PAPER, 55.01, 36.05, 64.02, 59.29, 40.83, 74.87),
    _row("linear-transformer", "Linear Transformer", ARENA_PAPER, 50.55, 16.13, 65.90, 53.09, 42.34, 75.30),
    _row("performer", "Performer", ARENA_PAPER, 51.41, 18.01, 65.40, 53.82, 42.77, 77.05),
    _row("fnet", "FNet", S4_PAPER, 54.42, 35.33, 65.11, 59.61, 38.67, 77.80),
    _row("nystromformer", "Nystromformer", S4_PAPER, 57.46, 37.15, 65.52, 79.56, 41.58, 70.94),
    _row("luna", "Luna-256", S4_PAPER, 59.37, 37.25, 64.57, 79.29, 47.38, 77.72),
    _row("luna", "Luna-256 (in the table of Mega)", MEGA_PAPER, 61.95, 37.98, 65.78, 79.56, 47.86, 78.55),
    _row("s4", "S4, first version", S4_PAPER, 80.48, 58.35, 76.02, 87.09, 87.26, 86.05, 88.10),
    _row("s4", "S4-LegS", "Gu et al. 2022, arXiv:2206.12037", 86.09, 59.60, 86.82, 90.90, 88.65, 94.20, 96.35),
    _row("s4", "S4 (trained by Mega)", MEGA_PAPER, 85.86, 59.10, 86.53, 90.94, 88.48, 94.01, 96.07),
    _row("s4d", "S4D-LegS", S4D_PAPER, 84.89, 60.47, 86.18, 89.46, 88.19, 93.06, 91.95),
    _row("s4d", "S4D-Inv", S4D_PAPER, 85.50, 60.18, 87.34, 91.09, 87.83, 93.78, 92.80),
    _row("s4d", "S4D-Lin", S4D_PAPER, 78.39, 60.52, 86.97, 90.96, 87.93, 93.96),
    _row("dss", "DSS, softmax", "Gupta et al. 2022, arXiv:2203.14343", 81.88, 60.6, 84.8, 87.8, 85.7, 84.6, 87.8),
    _row("dss", "DSS, exp", "Gupta et al. 2022, arXiv:2203.14343", 81.18, 59.7, 84.6, 87.6, 84.9, 84.7, 85.6),
    _row("s5", "S5", "Smith et al. 2023, arXiv:2208.04933", 87.46, 62.15, 89.31, 91.40, 88.00, 95.33, 98.58),
    _row(
        "liquid-s4",
        "Liquid-S4",
        "Hasani et al. 2022, arXiv:2209.12951",
        87.32,
        62.75,
        89.02,
        91.20,
        89.50,
        94.80,
        96.66,
    ),
    _row("sgconv", "SGConv", "Li et al. 2022, arXiv:2210.09298", 87.17, 61.45, 89.20, 91.11, 87.97, 95.46, 97.83),
    _row("longconv", "LongConv, random, squashed", LONG_CONV_PAPER, 86.1, 60.3, 87.1, 90.0, 88.3, 94.0, 96.9),
    _row("longconv", "LongConv, exponential, squashed", LONG_CONV_PAPER, 86.6, 62.2, 89.6, 91.3, 87.0, 93.2, 96.0),
    _row("ckconv", "CCNN", CCNN_PAPER, 68.02, 43.60, 84.08, CHANCE, 88.90, 91.51),
    _row("mega", "Mega", MEGA_PAPER, 88.21, 63.14, 90.43, 91.25, 90.44, 96.01, 97.98),
    _row("mega-chunk", "Mega-chunk", MEGA_PAPER, 85.66, 58.76, 90.19, 90.97, 85.80, 94.41, 93.81),
    _row("rwkv", "RWKV-4", "Peng et al. 2023, arXiv:2305.13048", 72.07, 55.88, 86.04, 88.34, 70.53, 58.42),
]


class PublishedSpeed(NamedTuple):
    """Training steps a second, and gigabytes on each of 16 TPU v3 chips, at 1,024, 2,048, 3,072 and 4,096 bytes."""

    system: str
    steps_per_second: tuple[float, ...]
    gigabytes: tuple[float, ...]


PUBLISHED_SPEED_LENGTHS = (1024, 2048, 3072, 4096)
PUBLISHED_SPEED = [
    PublishedSpeed("transformer", (8.1, 4.9, 2.3, 1.4), (0.85, 2.65, 5.51, 9.48)),
    PublishedSpeed("local", (9.2, 8.4, 7.4, 7.4), (0.42, 0.76, 1.06, 1.37)),
    PublishedSpeed("linformer", (9.3, 9.1, 8.5, 7.7), (0.37, 0.55, 0.99, 0.99)),
    PublishedSpeed("reformer", (4.4, 2.2, 1.5, 1.1), (0.48, 0.99, 1.53, 2.28)),
    PublishedSpeed("sinkhorn", (9.1, 7.9, 6.6, 5.3), (0.47, 0.83, 1.13, 1.48)),
    PublishedSpeed("synthesizer", (8.7, 5.7, 6.6, 1.9), (0.65, 1.98, 4.09, 6.99)),
    PublishedSpeed("bigbird", (7.4, 3.9, 2.7, 1.5), (0.77, 1.49, 2.18, 2.88)),
    PublishedSpeed("linear-transformer", (9.1, 9.3, 8.6, 7.8), (0.37, 0.57, 0.80, 1.03)),
    PublishedSpeed("performer", (9.5, 9.4, 8.7, 8.0), (0.37, 0.59, 0.82, 1.06)),
]
"""Of the first paper's second table: byte-level text, batch 32.  Sparse and Longformer are not in it."""
