"""Whether kernels in Triton can run: asked by the backends named `triton` and by `longreach doctor`.

Triton compiles for GPUs.  On a CPU it has an interpreter, slow and for tests: with TRITON_INTERPRET=1 in the
environment when Triton is imported, every kernel of the process is interpreted, and a backend that is forced by
`use_backend` takes tensors on the CPU.  It is never chosen for them.
"""

import importlib.util
import os
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext

import torch

REMEDY = "pip install 'longreach[gpu]' on Linux; a torch that is built for CUDA brings it along"
"""What to do where Triton is missing."""


def _missing() -> str | None:
    """A folder of that name somewhere on the path is no package: it has no file of its own."""
    found = importlib.util.find_spec("triton")
    return "Triton is not installed" if found is None or found.origin is None else None


MISSING: str | None = _missing()
"""Why no kernel in Triton can run anywhere, or None."""
INTERPRETED: bool = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
"""Whether kernels are interpreted instead of compiled."""


def refusal(device: torch.device, dtype: torch.dtype, dtypes: Collection[torch.dtype]) -> str | None:
    """Why kernels in Triton for these dtypes cannot take tensors of this kind, or None."""
    if MISSING is not None:
        return MISSING
    if device.type != "cuda" and not (device.type == "cpu" and INTERPRETED):
        return f"runs on a GPU, the input is on {device.type}"
    return None if dtype in dtypes else f"has no kernel for {dtype}"


def interpretation(device: torch.device) -> str | None:
    """Why kernels in Triton that can run should not (for `yields`), or None."""
    return None if device.type == "cuda" and not INTERPRETED else "Triton interprets its kernels here, which is slow"


def on(device: torch.device) -> AbstractContextManager:
    """Launches go to `device` meanwhile: Triton takes the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
