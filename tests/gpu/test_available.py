"""Whether kernels can run is said once, and without the interpreter no tensor on the CPU reaches them."""

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
import torch

from longreach.ops.triton import available

DTYPES = (torch.float32,)


def test_what_cannot_run_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert available.refusal(gpu, torch.float32, DTYPES) is None
    assert available.refusal(gpu, torch.float64, DTYPES) == "has no kernel for torch.float64"
    assert available.refusal(torch.device("meta"), torch.float32, DTYPES) == "runs on a GPU, the input is on meta"
    monkeypatch.setattr(available, "INTERPRETED", False)
    assert available.refusal(cpu, torch.float32, DTYPES) == "runs on a GPU, the input is on cpu"
    assert available.interpretation(gpu) is None
    monkeypatch.setattr(available, "INTERPRETED", True)
    assert available.refusal(cpu, torch.float32, DTYPES) is None
    assert "slow" in available.interpretation(cpu)
    monkeypatch.setattr(available, "MISSING", "Triton is not installed")
    assert available.refusal(gpu, torch.float32, DTYPES) == "Triton is not installed"


def test_a_folder_named_triton_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As this folder of tests would be, where the folder of all tests is on the path."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    assert available._missing() == "Triton is not installed"


def test_bfloat16_products_are_right(device: torch.device) -> None:
    """They are silently wrong in Triton's interpreter, so `product` widens there."""
    import product_kernel

    a, b = (torch.randn(16, 16, device=device, dtype=torch.bfloat16) for _ in range(2))
    c = torch.empty(16, 16, device=device)
    product_kernel.square[(1,)](a, b, c, SIZE=16)
    torch.testing.assert_close(c, a.float() @ b.float(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_numbers_are_rounded_to_the_nearest(dtype: torch.dtype, device: torch.device) -> None:
    """Triton's interpreter cuts off what bfloat16 has no room for."""
    import product_kernel

    x = torch.randn(64, device=device) * 2.0 ** torch.arange(-8, 8, device=device).repeat(4)
    x[:4] = torch.tensor([0.0, -0.0, 1.99999, 1 + 2.0**-8], device=device)  # carries into the exponent; halfway
    y = torch.empty(64, device=device, dtype=dtype)
    product_kernel.narrow[(1,)](x, y, SIZE=64)
    assert torch.equal(y, x.to(dtype))


def test_variants_are_counted_as_triton_would(device: torch.device, variants: set[tuple[str, str]]) -> None:
    import product_kernel

    a, c = torch.randn(256, device=device), torch.empty(256, device=device)
    product_kernel.square[(1,)](a, a, c, SIZE=16)
    product_kernel.square[(1,)](a, a, c, SIZE=16)
    assert len(variants) == 1
    product_kernel.square[(1,)](a.bfloat16(), a.bfloat16(), c, SIZE=16)
    product_kernel.square[(1,)](a, a, c, SIZE=16, num_warps=8)
    assert len(variants) == 3
