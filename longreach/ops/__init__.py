"""Numerical operations on tensors: no parameters, no modules, no knowledge of any model."""

from longreach.ops.backend import OPS, BackendError, use_backend

__all__ = ["OPS", "BackendError", "use_backend"]
