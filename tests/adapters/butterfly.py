"""Butterfly matrices as in github.com/HazyResearch/butterfly (torch_butterfly).

    Butterfly, ButterflyUnitary     butterfly.py          layers
    special.py                      fixed transforms, stored as a sequence of permutations, butterflies and diagonals
    permutation.py                  bit reversal, wavelet permutation
    twiddle_base2_to_base4          multiply_base4.py     two factors as one of radix 4

Files of special.py do not say which transform they hold: what is compared is that our operators make the published
output of the published factors.  tests/test_butterfly.py compares our own factors with these.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from adapters import Declined, Published, Tensors
from adapters.monarch import as_complex, dense
from longreach.models import ButterflyLinear
from longreach.ops import (
    bit_reversal,
    butterfly_factor,
    butterfly_multiply,
    merge_factors,
    transpose_twiddle,
    unitary_twiddle,
    wavelet_order,
)

Config = dict[str, Any]


def adapt(config: Config, metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published class or function."""
    source = metadata["source"]
    for marker, adapter in ADAPTERS.items():
        if source.endswith(marker):
            return adapter(config)
    return Declined(f"no such butterfly here: {source}")


def layer(config: Config, *, unitary: bool = False) -> Published:
    """A layer in place of nn.Linear."""
    sizes = [config.get(name, config.get("n")) for name in ("in_size", "out_size")]
    bias = config.get("bias", "n" not in config)
    numbers = "unitary" if unitary else "complex" if config.get("complex", False) else "real"
    module = ButterflyLinear(
        *sizes,
        bias=bias,
        numbers=numbers,
        init={"randn": "normal", "ortho": "orthogonal", "identity": "identity"}[config.get("init", "randn")],
        n_blocks=config.get("nblocks", 1),
        increasing=config.get("increasing_stride", True),
    )
    options = dict(config.get("forward", {}))
    smaller = options.pop("subtwiddle", False)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        return {"twiddle": theirs["twiddle"]} | ({"bias": theirs["bias"]} if bias else {})

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        is_complex = numbers != "real"
        x = as_complex(tensors["input"]) if is_complex else tensors["input"]
        y = (part if smaller else ButterflyLinear.__call__)(module, x, **options)
        results = {"output": torch.view_as_real(y.resolve_conj()) if is_complex else y}
        if "dense" in tensors:
            matrix = dense(module, sizes[0]).contiguous()
            results["dense"] = torch.view_as_real(matrix) if is_complex else matrix
        return results

    return Published(module, weights, run)


def part(module: ButterflyLinear, x: Tensor, *, transpose: bool = False, conjugate: bool = False) -> Tensor:
    """The published `subtwiddle`: the factors of the smallest strides alone, for fewer features."""
    levels, increasing = (x.shape[-1] - 1).bit_length(), module.increasing
    twiddle = module.matrices()[..., : 2 ** (levels - 1), :, :]
    twiddle = twiddle[:, :, :levels] if increasing else twiddle[:, :, -levels:]
    if transpose:
        twiddle, increasing = transpose_twiddle(twiddle), increasing == (twiddle.shape[1] % 2 == 0)
    x = pad(x, (0, 2**levels - x.shape[-1]))[..., None, :].expand(*x.shape[:-1], len(twiddle), 2**levels)
    y = butterfly_multiply(x, twiddle.conj() if conjugate else twiddle, increasing).flatten(-2)
    if module.bias is None:
        return y
    return y + (module.bias if module.numbers == "real" else as_complex(module.bias))[: y.shape[-1]]


class Steps(nn.Module):
    """A published sequence, whose parameters become known with the file."""

    def take(self, theirs: Tensors) -> dict[str, Tensor]:
        """The tensors of the file, in the order in which they are applied."""
        self.names = sorted(theirs)  # fewer than ten, numbered
        ours = {name.replace(".", "_"): theirs[name] for name in self.names}
        for name, tensor in ours.items():
            self.register_buffer(name, torch.zeros_like(tensor))
        return ours


def special(config: Config) -> Published:
    """A fixed transform."""

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        x = tensors["input"]
        is_complex = x.ndim == 3
        y = as_complex(x) if is_complex else x
        increasing = starts_increasing(dict(module.named_buffers()), config)
        for name in module.names:
            y, increasing = apply_step(name, getattr(module, name.replace(".", "_")), y, increasing)
        y = y[..., : config["n"]]
        return {"output": torch.view_as_real(y) if is_complex else y.real if y.is_complex() else y}

    module = Steps()
    return Published(module, module.take, run)


def starts_increasing(steps: dict[str, Tensor], config: Config) -> bool:
    """The direction of the first butterfly, which the files do not say: only what starts with an FFT without its
    permutation, or ends with a permutation, has decreasing strides first.
    """
    if "br_first" in config:
        return config["br_first"]
    *_, last = steps
    several_blocks = any(name.endswith("twiddle") and tensor.shape[1] > 1 for name, tensor in steps.items())
    circulant = several_blocks or any(name.endswith("diagonal") for name in steps)
    return not circulant and not last.endswith("permutation")


def apply_step(name: str, tensor: Tensor, x: Tensor, increasing: bool) -> tuple[Tensor, bool]:
    """One entry of the sequence, and the direction of the next butterfly."""
    if name.endswith("permutation"):
        return x[..., tensor], increasing
    if name.endswith("diagonal"):
        return x * (as_complex(tensor) if tensor.ndim == 2 else tensor), increasing
    twiddle = {5: unitary_twiddle, 6: torch.Tensor.contiguous, 7: as_complex}[tensor.ndim](tensor)
    x = pad(x, (0, 2 * twiddle.shape[3] - x.shape[-1]))
    return butterfly_multiply(x[..., None, :], twiddle, increasing)[..., 0, :], not increasing


def permutations(config: Config) -> Published:
    """Bit reversal and the order of a wavelet transform."""

    def run(module: nn.Module, tensors: Tensors) -> dict[str, Tensor]:
        return {"output": bit_reversal(config["n"]), "wavelet": wavelet_order(config["n"])}

    return Published(nn.Module(), lambda theirs: {}, run)


def base_four(config: Config) -> Published:
    """The same map with factors of radix 4 and, for an odd number of levels, a last one of radix 2."""
    module = nn.Module()
    for name in ("twiddle", "twiddle2", "twiddle4"):
        module.register_buffer(name, torch.zeros(1))

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        x, stride, merged = tensors["input"], 1, []
        for factor in module.twiddle4[0, 0]:
            merged.append(merge_factors(module.twiddle[0, 0, 2 * len(merged) :][:2], stride))
            x, stride = butterfly_factor(x, factor, stride), 4 * stride
        for factor in module.twiddle2[0, 0]:
            x = butterfly_factor(x, factor, stride)
        return {"output": x, "param/twiddle4": torch.stack(merged)[None, None]}

    return Published(module, dict, run)


ADAPTERS = {
    "butterfly.py:Butterfly": layer,
    "butterfly.py:ButterflyUnitary": lambda config: layer(config, unitary=True),
    "special.py": special,
    "permutation.py": permutations,
    "multiply_base4.py:twiddle_base2_to_base4": base_four,
}
"""How a source ends -> its adapter."""
