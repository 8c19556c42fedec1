"""The norms of longreach.mixers.norms: blocks have them too."""

from longreach.mixers.norms import BatchNorm, Norm, RMSNormOutside, ScaleNorm, apply_norm, make_norm

__all__ = ["BatchNorm", "Norm", "RMSNormOutside", "ScaleNorm", "apply_norm", "make_norm"]
