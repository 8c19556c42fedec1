"""GPU kernels in Triton (Tillet et al. 2019, https://doi.org/10.1145/3315508.3329973), one more backend of operators.

For each operator there are two files.  `<operator>.py` holds what torch sees: operators of torch.library with their
shapes and derivatives, and the launches.  It never imports Triton at its top, so that the package works, and is traced,
without it.  `<operator>_kernels.py` holds the kernels, is imported by the first launch, and imports Triton.

Above every kernel stand `@triton.jit` and `@no_type_check`; the latter keeps the checks of annotations, in tests, away.

    available.py    whether the kernels can run, and if not, why
    products.py     what kernels share

Attached in the file of the operator, below its other backends:

    def _triton_refuses(x): return available.refusal(x.device, x.dtype, DTYPES) or ...     # cannot
    def _triton_yields(x): return available.interpretation(x.device) or ...                # something else is faster

    @double.backend("triton", refuses=_triton_refuses, yields=_triton_yields)
    def _triton(x): return triton_double(x)                                                 # of ops/triton/double.py

What each kernel does and what bounds it: docs/gpu.md.
"""
