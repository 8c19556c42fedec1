"""What this installation has to work with: versions, processor, memory, GPU, and which backend every operator takes.

Each finding that costs something comes with what it costs and what to do about it.
"""

import importlib.metadata
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

import longreach.models  # noqa: F401 (makes every operator known)
from longreach.cli.typical_calls import TYPICAL_CALLS
from longreach.ops import OPS, native
from longreach.ops.triton import available
from longreach.training.run_folder import machine

EXTRAS = {
    "log": "no TensorBoard files; metrics.jsonl and the plots hold the same numbers",
    "hf": "no data sets of the Hugging Face hub",
    "gpu": "on a GPU every operator runs on torch alone; nothing on a CPU",
    "dev": "the tests and checks cannot run",
}
"""Optional sets of packages: what is lost without each."""

INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")
"""Flags of /proc/cpuinfo that the kernels of torch make use of."""

LITTLE_MEMORY = 4 << 30

WITHOUT_KERNELS = (
    "long convolutions, scans and kernels of state spaces run on torch alone and take 2 to 4 times as long"
)
"""What it costs to have none; measured in docs/performance.md."""


class Diagnosis(NamedTuple):
    """All findings, as plain JSON values."""

    packages: dict[str, dict[str, str | None]]
    """Name -> version (None: not installed) and the extra that it belongs to ("" : needed)."""
    machine: dict[str, Any]
    operators: dict[str, dict[str, Any]]
    """Name -> the backend that a typical call takes, and why the others do not run it (None: that one would)."""
    advice: list[str]
    """What is missing, what that costs, and the remedy."""


def diagnose() -> Diagnosis:
    """Look at everything; calls no operator."""
    packages, found = installed_packages(), describe_machine()
    return Diagnosis(packages, found, operator_backends(), [*_package_advice(packages), *_machine_advice(found)])


def installed_packages() -> dict[str, dict[str, str | None]]:
    """Every package that this one names as a dependency, needed or optional, with the first extra that names it."""
    packages: dict[str, dict[str, str | None]] = {}
    for requirement in importlib.metadata.requires("longreach") or []:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        packages.setdefault(name, {"version": _version(name), "extra": extra[1] if extra else ""})
    return packages


def describe_machine() -> dict[str, Any]:
    """The processor, its memory and instruction sets, and the GPU."""
    affinity = getattr(os, "sched_getaffinity", None)
    flags = _first_in(Path("/proc/cpuinfo"), r"^(?:flags|Features)\s*:(.*)$").split()
    return {
        **machine(),
        "cores_allowed": len(affinity(0)) if affinity else os.cpu_count(),
        "memory": _memory(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "torch_kernels": torch.backends.cpu.get_cpu_capability(),
        "kernels": native.INSTRUCTIONS,
        "kernels_missing": native.MISSING,
        "kernels_best": native.instruction_sets()[0],
        "triton": _version("triton") if available.MISSING is None else None,
        "triton_interpreted": available.INTERPRETED,
        "mkl": torch.backends.mkl.is_available(),
        "mkldnn": torch.backends.mkldnn.is_available(),
        "cuda_build": torch.version.cuda,
        "nvidia_device": Path("/dev/nvidiactl").exists(),
    }


def operator_backends() -> dict[str, dict[str, Any]]:
    """For every operator what a typical call of a model in training takes, and why not the others."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backends = {}
    for name, operator in sorted(OPS.items()):
        arguments = TYPICAL_CALLS[name](device)
        with torch.set_grad_enabled(not name.endswith("_step")):
            backends[name] = {"takes": operator.choose(*arguments), "others": operator.explain(*arguments)}
        del backends[name]["others"][backends[name]["takes"]]
    return backends


def _package_advice(packages: dict[str, dict[str, str | None]]) -> list[str]:
    advice = []
    for extra in ["", *EXTRAS]:
        missing = [name for name, found in packages.items() if found["extra"] == extra and found["version"] is None]
        if missing and not extra:
            advice.append(f"needed and not installed: {', '.join(missing)}; install longreach again")
        elif missing:
            remedy = f"pip install 'longreach[{extra}]'"
            advice.append(f"{', '.join(missing)} not installed ({EXTRAS[extra]}): {remedy}")
    return advice


def _machine_advice(found: dict[str, Any]) -> list[str]:
    advice = []
    if found["threads"] > found["cores_allowed"]:
        advice.append(
            f"{found['threads']} threads share {found['cores_allowed']} cores, which makes all of them slow: "
            f"set OMP_NUM_THREADS={found['cores_allowed']} or training.threads"
        )
    if found["memory"] is not None and found["memory"] < LITTLE_MEMORY:
        advice.append(
            "less than 4 GiB of memory: lower task.batch_size, or task.context, or set recompute in the backbone"
        )
    if found["kernels_missing"]:
        advice.append(f"{found['kernels_missing']}, so {WITHOUT_KERNELS}: {native.REMEDY}")
    elif found["kernels"] != found["kernels_best"]:
        advice.append(
            f"the C++ kernels are not built for {found['kernels_best']}, which this processor has, and those for "
            f"{found['kernels']} take up to three times as long: {native.REMEDY}"
        )
    if found["gpu"] and not found["triton"]:
        advice.append(f"there is a GPU, but Triton is not installed, so its kernels cannot run: {available.REMEDY}")
    if found["triton_interpreted"]:
        advice.append("TRITON_INTERPRET is set, so kernels in Triton are only simulated: unset it")
    if not found["mkl"] and not found["gpu"]:
        advice.append("torch is built without MKL: Fourier transforms, and with them long convolutions, are slower")
    if not {"amx_bf16", "avx512_bf16", "bf16"} & set(found["instructions"]) and not found["gpu"]:
        advice.append(
            "the processor has no bfloat16 instructions: training.precision = bfloat16 saves memory, not time"
        )
    if found["nvidia_device"] and not found["gpu"]:
        build = "built for the CPU only" if found["cuda_build"] is None else f"built for CUDA {found['cuda_build']}"
        advice.append(
            f"there is an NVIDIA GPU, but torch ({build}) cannot use it: install a torch that fits its driver"
        )
    return advice


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> int | None:
    """Bytes of memory, where the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _first_in(path: Path, pattern: str) -> str:
    """The first match in a file; nothing where the system has no such file."""
    found = re.search(pattern, path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1] if found else ""
