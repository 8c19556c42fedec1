"""Monarch matrices and their transforms as published in three repositories.

    github.com/HazyResearch/fly
        MonarchLinear, BlockdiagLinear              src/models/layers
        blockdiag_butterfly_multiply                src/models/layers/blockdiag_butterfly_multiply.py
        ..._einsum, ..._einsum_rank                 src/ops/blockdiag_butterfly_einsum.py
        blockdiag_butterfly_project, ButterflyFFT   src/ops/blockdiag_butterfly_projection.py
    github.com/HazyResearch/safari
        BlockFFT                                    src/models/sequence/block_fft.py
    github.com/HazyResearch/flash-fft-conv
        monarch_outer_dft                           flashfftconv/conv.py

Complex tensors in the files have a trailing axis of two.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from adapters import Declined, Published, Tensors
from longreach.mixers.learned_fft import LearnedFFT, TransformOptions
from longreach.models import BlockDiagonalLinear, MonarchLinear
from longreach.ops import cooley_tukey, dft_matrix, monarch, monarch_dft, project_monarch
from longreach.ops.cooley_tukey import twiddle_factors
from longreach.ops.monarch import near_square

Config = dict[str, Any]
NEEDED_RADIX = 16
"""The published transform hands `max_m` to its list of matrices only, and always factors by this one."""


def adapt(config: Config, metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published class or function."""
    source = metadata["source"]
    for marker, adapter in ADAPTERS.items():
        if source.endswith(marker):
            return adapter(config)
    return Declined(f"no such Monarch matrix here: {source}")


class Operands(nn.Module):
    """Two factors, as the file stores them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))


def factors(theirs: Tensors) -> dict[str, Tensor]:
    """The published names of two factors."""
    return {"first": theirs["w1_bfly"], "second": theirs["w2_bfly"]}


def as_complex(x: Tensor) -> Tensor:
    """The complex numbers that the pairs stand for."""
    return torch.view_as_complex(x.contiguous())


def dense(layer: nn.Module, features: int) -> Tensor:
    """The matrix of a linear map, (outputs, inputs)."""
    return (layer(torch.eye(features).double()) - layer(torch.zeros(1, features).double())).T


def linear(config: Config) -> Published:
    """MonarchLinear."""
    bias = config.get("bias", True)
    layer = MonarchLinear(config["in_features"], config["out_features"], n_blocks=config.get("nblocks", 4), bias=bias)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = {"first": theirs["blkdiag1"], "second": theirs["blkdiag2"]}
        return ours | {"bias": theirs["bias"]} if bias else ours

    return Published(layer, weights, run_linear)


def run_linear(layer: Any, tensors: Tensors) -> dict[str, Tensor]:
    """The layer and its matrix."""
    x = tensors["input"]
    return {"output": layer(x), "dense": dense(layer, x.shape[-1])}


def block_diagonal(config: Config) -> Published:
    """BlockdiagLinear."""
    layer = BlockDiagonalLinear(
        config["in_features"],
        config["out_features"],
        n_blocks=config.get("nblocks", 4),
        bias=config.get("bias", True),
        shuffle=config.get("shuffle", False),
    )
    return Published(layer, dict, run_linear)


def multiply(config: Config) -> Published:
    """blockdiag_butterfly_multiply."""

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        convert = as_complex if config["complex"] else torch.Tensor.contiguous
        both = [convert(module.first), convert(module.second)]
        y = monarch(convert(tensors["input"]), both)
        matrix = monarch(torch.eye(config["n"], dtype=y.dtype), both).T
        results = {"output": y, "dense": matrix.contiguous()}
        if config["complex"]:
            results = {name: torch.view_as_real(result) for name, result in results.items()}
        return {name: result for name, result in results.items() if name in tensors}

    return Published(Operands(), factors, run)


def einsum(config: Config, *, rank: bool = False) -> Published:
    """The generalisations: a rank, or several entries that are shuffled together, b1 inside and b2 at the end."""
    widths = [1, 1] if rank else [config["w1"][1] // config["w2"][0], config.get("b2", 1)]

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        return {"output": monarch(tensors["input"], [module.first, module.second], widths)}

    return Published(Operands(), factors, run)


def project(config: Config) -> Published:
    """blockdiag_butterfly_project: the nearest matrix and its distance."""
    first, second = config.get("sizes") or near_square(config["n"])

    def run(module: nn.Module, tensors: Tensors) -> dict[str, Tensor]:
        matrix = as_complex(tensors["input"]) if config["complex"] else tensors["input"]
        nearest = monarch(
            torch.eye(matrix.shape[1], dtype=matrix.dtype), project_monarch(matrix, (first, second))
        ).T.contiguous()
        return {
            "output": torch.view_as_real(nearest) if config["complex"] else nearest,
            "error": torch.linalg.matrix_norm(matrix - nearest),
        }

    unchecked = dict.fromkeys(("w1", "w2"), "factors are unique up to signs only; their product is compared")
    return Published(nn.Module(), lambda theirs: {}, run, unchecked=unchecked)


def fourier(config: Config) -> Published:
    """ButterflyFFT: its factors, and ours for the same transform."""
    ours = monarch_dft(config["n"], inverse=config["direction"] == "ifft", normalized=config["norm"] == "ortho")
    module = Operands()
    module.register_buffer("order", torch.zeros(1, dtype=torch.int64))

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        x = as_complex(tensors["input"])
        y = monarch(x[..., module.order], [as_complex(module.first), as_complex(module.second)])
        exact = monarch(x[..., ours[0]], ours[1:])
        return {"output": torch.view_as_real(y), "reference_fft": torch.view_as_real(exact)}

    return Published(module, lambda theirs: {**factors(theirs), "order": theirs["perm"]}, run)


def outer(config: Config) -> Published:
    """monarch_outer_dft: the first level alone, and both with the digits of the result in reverse."""
    sizes = (config["N1"], config["N2"])
    matrices = [dft_matrix(size) for size in sizes]

    def run(module: nn.Module, tensors: Tensors) -> dict[str, Tensor]:
        x = as_complex(tensors["input"])
        results = {
            "outer": twiddle_factors(*sizes) * (matrices[0] @ x.unflatten(-1, sizes)),
            "output": cooley_tukey(x, matrices, in_order=False).unflatten(-1, sizes),
            "reference_fft": cooley_tukey(x, matrices),
        }
        return {name: torch.view_as_real(result.contiguous()) for name, result in results.items()}

    return Published(nn.Module(), lambda theirs: {}, run)


def learned(config: Config) -> Published | Declined:
    """BlockFFT."""
    if config.get("activation") is not None:
        return Declined("activation: real and imaginary parts are bent after every level, which is no transform")
    entries, trained = config["N"], config.get("learn_dft_matrices", True)
    additive = config.get("learn_additive", False) or not trained  # a deviation of zero is a fixed transform
    size = 1 << (entries - 1).bit_length()
    options = TransformOptions(
        radix=NEEDED_RADIX,
        per_channel=config.get("H", 1) > 1,
        additive=additive,
        dropout=float(config.get("dropout", 0)),
        lr=config.get("dft_lr", 0.001),
    )
    transform = LearnedFFT(config.get("H", 1), size, options)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        if trained:
            return {f"matrices.{name}": theirs[f"mat_{name}"] for name in transform.matrices}
        return {f"matrices.{name}": torch.zeros_like(own).double() for name, own in transform.matrices.items()}

    def run(transform: Any, tensors: Tensors) -> dict[str, Tensor]:
        x = as_complex(tensors["input"])
        x = pad(x, (0, size - x.shape[-1]))
        y = transform(x) if config.get("forward", True) else transform.inverse(x) * (size / entries)
        return {"output": torch.view_as_real(y.resolve_conj())}

    powers = {str(2**i) for i in range(1, config.get("max_m", NEEDED_RADIX).bit_length())}
    unused = powers - set(transform.matrices) if trained else set()
    return Published(transform, weights, run, unchecked={f"param/mat_{name}": "of no level" for name in unused})


ADAPTERS = {
    "monarch_linear:MonarchLinear": linear,
    "blockdiag_linear:BlockdiagLinear": block_diagonal,
    "blockdiag_butterfly_multiply.py": multiply,
    "blockdiag_butterfly_multiply_einsum": einsum,
    "blockdiag_butterfly_multiply_einsum_simple": einsum,
    "blockdiag_butterfly_multiply_einsum_rank": lambda config: einsum(config, rank=True),
    "blockdiag_butterfly_projection.py:blockdiag_butterfly_project": project,
    "blockdiag_butterfly_projection.py:ButterflyFFT": fourier,
    "conv.py:monarch_outer_dft": outer,
    "block_fft.py:BlockFFT": learned,
}
"""How a source ends -> its adapter."""
