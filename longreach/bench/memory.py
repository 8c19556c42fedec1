"""How much memory a call needs at once."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

HIGH_WATER, RESIDENT = "VmHWM", "VmRSS"


def peak_bytes(run: Callable[[], object], device: str) -> int | None:
    """The bytes that a run needs at once beyond what there was before it.

    On a GPU as torch counts it; on Linux the growth of the resident set at its highest point; elsewhere None.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    status = Path("/proc/self/status")
    if not status.exists():
        run()
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before shall not hide what is needed now
    Path("/proc/self/clear_refs").write_text("5")  # forgets the high-water mark
    before = _memory(status, RESIDENT)
    run()
    return _memory(status, HIGH_WATER) - before


def _memory(status: Path, name: str) -> int:
    (line,) = [line for line in status.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024
