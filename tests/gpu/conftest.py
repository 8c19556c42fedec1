"""Tests of the kernels in Triton: interpreted on the CPU, compiled where there is a GPU (`pytest -m gpu` picks them).

Without a GPU the conftest above has Triton imported for its interpreter; here the package is told so, for these tests
alone, and in all others its kernels refuse tensors on the CPU as they always do.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from longreach.ops.triton import available

GPU = torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ
HOPPER = ("cuda", 90, 32)
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the conftest above asks for deterministic products


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and skip them where they cannot run."""
    reason = available.MISSING and f"{available.MISSING}: {available.REMEDY}"
    if reason is None and config.option.markexpr == "gpu" and not GPU:
        reason = "there is no GPU that torch can use, or TRITON_INTERPRET is set"
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.triton)
            item.add_marker(pytest.mark.gpu)
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are decorated when the first test calls one, and the package knows what they are."""
    if not GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(available, "INTERPRETED", True)


@pytest.fixture
def device() -> torch.device:
    """Where the tensors of a test are."""
    return torch.device("cuda" if GPU else "cpu")


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is launched: for tests that count `variants`, asked for before them, of more shapes than time allows."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    for cls in (JITFunction, InterpretedFunction):
        monkeypatch.setattr(cls, "run", lambda *args, **kwargs: None)


@pytest.fixture
def variants(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """What a GPU of the Hopper generation would compile for the launches of a test: kernel, and the rest of its key.

    The key is Triton's own: dtypes, divisibility by 16 of addresses and integers, integers that are 1, constants, warps
    and stages.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction, create_function_from_signature

    backend, found, binders = make_backend(GPUTarget(*HOPPER)), set(), {}

    def counted(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        if kernel not in binders:
            compiled = kernel if isinstance(kernel, JITFunction) else JITFunction(kernel.fn, **kernel.kwargs)
            binders[kernel] = create_function_from_signature(compiled.signature, compiled.params, backend)
        _, specialisation, options = binders[kernel](*args, **kwargs)
        found.add((kernel.__name__, f"{specialisation} {options}"))
        return run(kernel, *args, grid=grid, warmup=warmup, **kwargs)

    cls = JITFunction if GPU else InterpretedFunction
    run = cls.run
    monkeypatch.setattr(cls, "run", counted)
    return found
