"""The theory of memory in state-space models: measures, their normal and diagonal forms, discretisation, projection."""

from longreach.hippo.basis import basis, scaled_basis
from longreach.hippo.diagonal import DiagonalInit, DiagonalSystem, Spectrum, diagonal_system
from longreach.hippo.discretise import (
    Discretisation,
    MatrixDiscretisation,
    discretise,
    discretise_dplr,
    discretise_matrix,
    generalised_bilinear,
)
from longreach.hippo.dplr import DPLRParts, DPLRStart, dplr_system
from longreach.hippo.measures import Laguerre, Measure, low_rank, transition
from longreach.hippo.normal import NormalForm, diagonalise, normal_form
from longreach.hippo.projection import project, project_scaled

__all__ = [
    "DPLRParts",
    "DPLRStart",
    "DiagonalInit",
    "DiagonalSystem",
    "Discretisation",
    "Laguerre",
    "MatrixDiscretisation",
    "Measure",
    "NormalForm",
    "Spectrum",
    "basis",
    "diagonal_system",
    "diagonalise",
    "discretise",
    "discretise_dplr",
    "discretise_matrix",
    "dplr_system",
    "generalised_bilinear",
    "low_rank",
    "normal_form",
    "project",
    "project_scaled",
    "scaled_basis",
    "transition",
]
