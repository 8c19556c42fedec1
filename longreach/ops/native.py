"""The compiled CPU kernels (longreach/ops/csrc): found, chosen by instruction set, called by a plain C interface.

They are built when the package is installed, once for every instruction set, as `kernels/<instruction set>.so`.
Without them, for want of a compiler, every operator runs on torch; `MISSING` then says why.  Kernels that were built
from other sources than those that lie here count as none, because their callers may have changed too.  The variable
LONGREACH_KERNELS of the environment names another folder to look in; an empty folder switches them off.
"""

import ctypes
import functools
import hashlib
import os
import struct
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

FOLDER = Path(os.environ.get("LONGREACH_KERNELS", Path(__file__).parent / "kernels"))
SOURCES = Path(__file__).parent / "csrc"
"""What kernels are built from, where it was installed too."""
REMEDY = "install longreach where there is a C++ compiler (g++ 11 or newer)"
"""What to do where kernels are missing."""

LIBRARY = torch.library.Library("longreach", "FRAGMENT")
"""Where operators with compiled kernels are registered with torch."""


def instruction_sets() -> list[str]:
    """Names of the builds that run on this processor, best first; torch knows what it has."""
    usable = {"AVX512": ["avx512", "avx2", "baseline"], "AVX2": ["avx2", "baseline"]}
    return usable.get(torch.backends.cpu.get_cpu_capability(), ["baseline"])


def _built_from(library: ctypes.CDLL) -> str:
    """The digest of the sources of a library; empty if it is too old to tell."""
    if not hasattr(library, "longreach_digest"):
        return ""
    library.longreach_digest.restype = ctypes.c_char_p
    return library.longreach_digest().decode()


def _is_stale(library: ctypes.CDLL) -> bool:
    """Whether the sources that lie here are others than those of the library; setup.py makes the same digest."""
    paths = sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")])
    return bool(paths) and hashlib.sha256(b"".join(x.read_bytes() for x in paths)).hexdigest() != _built_from(library)


def _open() -> tuple[ctypes.CDLL | None, str]:
    """The best library that can be loaded and its name, or nothing and why."""
    reason = f"there are no C++ kernels in {FOLDER}"
    for name in instruction_sets():
        path = FOLDER / f"{name}.so"
        if path.exists():
            try:
                library = ctypes.CDLL(str(path))
            except OSError as error:
                reason = f"the C++ kernels cannot be loaded: {error}"
                continue
            if not _is_stale(library):
                return library, name
            reason = (
                f"the C++ kernels in {FOLDER} were built from other sources than those beside them; build them again"
            )
    return None, reason


_LIBRARY, _NAME_OR_REASON = _open()
MISSING: str | None = _NAME_OR_REASON if _LIBRARY is None else None
"""Why there are no compiled kernels, or None if there are."""
INSTRUCTIONS: str | None = None if _LIBRARY is None else _NAME_OR_REASON
"""What the kernels in use were compiled for: avx512, avx2 or baseline."""


def refusal(device: torch.device, dtype: torch.dtype, dtypes: Collection[torch.dtype]) -> str | None:
    """Why kernels for these dtypes on the CPU cannot run, or None."""
    if device.type != "cpu":
        return f"runs on the CPU, the input is on {device.type}"
    return MISSING if dtype in dtypes else f"has no kernel for {dtype}"


def address(x: Shaped[Tensor, "..."] | None) -> ctypes.c_void_p:
    """Where a tensor's elements begin, for a kernel; null for None."""
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def addresses(*tensors: Shaped[Tensor, "..."] | None) -> bytes:
    """An array of where tensors begin, as `address` has it; ctypes would take three times as long to make one."""
    return struct.pack(f"{len(tensors)}P", *[0 if x is None else x.data_ptr() for x in tensors])


def integers(*numbers: int) -> bytes:
    """An array of 64-bit integers for a kernel."""
    return struct.pack(f"{len(numbers)}q", *numbers)


@functools.cache
def kernel(name: str, n_pointers: int, n_sizes: int, n_ints: int = 1) -> Callable[..., None]:
    """The function `longreach_<name>` of the library: pointers first, then 64-bit sizes, then ints, threads last.

    It raises MemoryError, naming the size, where it cannot get its workspace.
    """
    assert _LIBRARY is not None, MISSING
    function = getattr(_LIBRARY, f"longreach_{name}")
    function.argtypes = [ctypes.c_void_p] * n_pointers + [ctypes.c_int64] * n_sizes + [ctypes.c_int] * n_ints
    function.restype = None
    missing = _LIBRARY.longreach_missing_memory
    missing.restype = ctypes.c_int64

    def run(*arguments: object) -> None:
        function(*arguments)
        if size := missing():
            raise MemoryError(
                f"{name}: {size:,} bytes of workspace could not be allocated beside the arguments and results; free "
                "memory, use fewer threads (torch.set_num_threads), or take fewer positions at a time"
            )

    return run


@functools.cache
def dtype_name(dtype: torch.dtype) -> str:
    """How the kernels call a dtype: float32, complex64 and so on."""
    return str(dtype).removeprefix("torch.")
