"""What one can choose of the kernels of S4 (https://arxiv.org/abs/2111.00396) and S4D (https://arxiv.org/abs/2206.11893)."""

from dataclasses import dataclass

from longreach.errors import InputError
from longreach.hippo.transforms import Transform


@dataclass(frozen=True)
class StateSpaceOptions:
    """The less common choices of the published kernels.

    Attributes:
        kernel_length: number of taps of the kernel; what is longer ago is not seen.  None is no limit.
        rate: multiplies dt, for input sampled at another rate: 2 for every second sample of what the weights were
            trained on.  The kernel then has `kernel_length / rate` taps.
        dt_tied: one time step for a channel, instead of one for each of its modes.
        dt_fast: the parameter is asinh of what `dt_transform` reads, which gives large steps a larger gradient.
        dt_transform: how dt follows from its parameter.
        real_transform: how -Re A follows from its parameter.
        imag_transform: how -Im A follows from its parameter.
    """

    kernel_length: int | None = None
    rate: float = 1.0
    dt_tied: bool = True
    dt_fast: bool = False
    dt_transform: Transform = "exp"
    real_transform: Transform = "exp"
    imag_transform: Transform = "none"

    @property
    def taps(self) -> int | None:
        """The number of taps of the kernel at this rate, or None where it is not limited."""
        return None if self.kernel_length is None else round(self.kernel_length / self.rate)

    def check(self) -> None:
        """Raise InputError for a rate that is none, or that leaves nothing of the kernel."""
        if self.rate <= 0:
            raise InputError(f"rate={self.rate} must be positive; 1 is the rate of the training data")
        if self.taps is not None and self.taps < 1:
            raise InputError(f"kernel_length={self.kernel_length} leaves no tap at rate={self.rate}")
