"""Linear, low-rank, synthetic and Fourier variants of attention."""

from adapters.lra import Table

TABLE: Table = {}
