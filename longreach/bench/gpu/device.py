"""What the device can do at most, measured: products of large matrices, and the copy of a large tensor."""

from functools import partial

import torch

from longreach.bench.gpu.cells import Cell, Numbers
from longreach.bench.gpu.clock import Meter
from longreach.bench.gpu.sizes import Sizes

SECTION = "device"
COPY = "copy"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def device_cells(sizes: Sizes) -> list[Cell]:
    """The first of all cells."""
    products = [
        Cell(SECTION, "product", name, sizes.matrix, 0, partial(_product, dtype, sizes.matrix))
        for name, dtype in DTYPES.items()
    ]
    return [*products, Cell(SECTION, COPY, "bytes", sizes.copied, 0, partial(_copy, sizes.copied))]


def _product(dtype: torch.dtype, size: int, meter: Meter) -> Numbers:
    a, b, out = (torch.randn(size, size, device=meter.device).to(dtype) for _ in range(3))
    torch.mm(a, b, out=out)
    seconds = meter.device_clock(lambda: torch.mm(a, b, out=out))
    return {"forward_seconds": seconds, "forward_operations": 2.0 * size**3}


def _copy(size: int, meter: Meter) -> Numbers:
    source, target = (torch.zeros(size, dtype=torch.int8, device=meter.device) for _ in range(2))
    target.copy_(source)
    return {"forward_seconds": meter.device_clock(lambda: target.copy_(source)), "forward_moved": 2.0 * size}
