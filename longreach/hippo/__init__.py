"""The theory of memory in state-space models: measures, their diagonal forms, and discretisation."""

from longreach.hippo.diagonal import DiagonalInit, DiagonalSystem, Spectrum, diagonal_system, normal_form
from longreach.hippo.discretise import Discretisation, discretise
from longreach.hippo.measures import Measure, low_rank, transition

__all__ = [
    "DiagonalInit",
    "DiagonalSystem",
    "Discretisation",
    "Measure",
    "Spectrum",
    "diagonal_system",
    "discretise",
    "low_rank",
    "normal_form",
    "transition",
]
