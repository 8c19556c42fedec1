"""How large the measurements are: as on a GPU with 80 GB, unless something smaller is asked for."""

from dataclasses import dataclass

POWERS = tuple(1 << exponent for exponent in range(9, 17))
CONVOLUTIONS = (256, 1 << 10, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 17, 1 << 20, 1 << 22)
TRAINED = (*(1 << exponent for exponent in range(10, 17)), 1 << 18, 1 << 20)


@dataclass(frozen=True)
class Sizes:
    """Lengths and numbers.

    Attributes:
        matrix: rows and columns of the matrices whose product gives the peak.
        copied: bytes whose copy gives the bandwidth.
        attention_lengths: of queries and keys.
        attention_tokens: in a batch, unless one sequence has more.
        attention_width: features of all heads together.
        head_sizes: features of one head.
        convolution_lengths: of signals and filters.
        convolution_numbers: in a signal, about.
        operator_lengths: of recurrences and sums.
        operator_numbers: in the largest argument or result, about.
        vocabulary: of the loss.
        width: of models.
        layers: of models.
        training_lengths: of sequences in training.
        training_tokens: in a batch, unless one sequence has more.
        contexts: tokens read before generation.
        batches: sequences generated at once.
        written: tokens generated in one measurement.
    """

    matrix: int = 8192
    copied: int = 1 << 32
    attention_lengths: tuple[int, ...] = POWERS
    attention_tokens: int = 1 << 14
    attention_width: int = 2048
    head_sizes: tuple[int, ...] = (64, 128)
    convolution_lengths: tuple[int, ...] = CONVOLUTIONS
    convolution_numbers: int = 64 * 768 * 4096
    operator_lengths: tuple[int, ...] = (1 << 10, 1 << 13, 1 << 16, 1 << 20)
    operator_numbers: int = 1 << 26
    vocabulary: int = 50_257
    width: int = 768
    layers: int = 4
    training_lengths: tuple[int, ...] = TRAINED
    training_tokens: int = 1 << 15
    contexts: tuple[int, ...] = (1 << 10, 1 << 12, 1 << 14, 1 << 16)
    batches: tuple[int, ...] = (1, 4, 16, 64)
    written: int = 64
