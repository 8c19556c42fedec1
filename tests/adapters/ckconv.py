"""CKConv of github.com/dwromero/ckconv: the convolution, its block, and the convolution with a given kernel.

    CKConv           ckconv/nn/ckconv.py                  kernel network, resampling, dense causal convolution
    CKBlock          ckconv/nn/ck_block.py                two of them with norms over channels and time, not causal
    causal_fftconv   ckconv/nn/functional/causalconv.py   the convolution alone

Published kernels are stored with the present last, and reach over the whole input.  An input of another length than
that of the training moves or stretches the positions, as `resampling` says; ours stay where the training had them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters import Declined, Published, Tensors
from longreach.errors import InputError
from longreach.mixers import CKConv, KernelOptions
from longreach.mixers.ckconv import smooth
from longreach.mixers.kernel_network import Magnet, Perceptron, make_network
from longreach.ops.dense_conv import dense_conv

NETWORKS = {
    "Sine": "sine",
    "ReLU": "relu",
    "LeakyReLU": "leaky_relu",
    "Swish": "swish",
    "RandomFourier": "random_fourier",
}
NORMS = {"": "none", "BatchNorm": "batch", "LayerNorm": "layer"}
Config = dict[str, Any]


def adapt(config: Config, metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published thing."""
    source = metadata["source"]
    if config.get("dim_linear", 1) != 1:
        return Declined("dim_linear: images; the published code raises an error for them")
    if config.get("train_length", config["L"]) == 1 and "causalconv" not in source:
        return Declined("a kernel of one tap: the published code divides by zero")
    try:
        if source.endswith("causalconv.py"):
            return given_kernel(config)
        return block(config) if source.endswith("CKBlock") else convolution(config)
    except InputError as error:
        return Declined(str(error))


def options(config: Config) -> KernelOptions:
    """Ours for the options of the kernel network, which is called KernelNet there."""
    network = NETWORKS[config.get("activation_function", "Sine")]
    without_norm = network in ("sine", "random_fourier")
    return KernelOptions(
        network=network,
        width=config["hidden_channels"],
        frequency=float(config["omega_0"]),
        norm="none" if without_norm else NORMS[config.get("norm_type", "")],
        weight_norm=network != "random_fourier",
    )


def network_weights(theirs: Tensors, prefix: str, network: Perceptron | Magnet) -> dict[str, Tensor]:
    """The layers stand at 0, 4 and 8 of a sequence, the norms at 2 and 6; with random features at 0, 1 and 3."""
    assert isinstance(network, Perceptron)
    ours, layers = {}, (0, 4, 8)
    if network.options.network == "random_fourier":
        ours = {"frequencies": theirs[f"{prefix}.0.weight"].flatten(), "phases": theirs[f"{prefix}.0.bias"]}
        layers = (1, 3)
    for i, position in enumerate(layers):
        direction = "weight" if network.gains is None else "weight_v"
        ours[f"weights.{i}"] = theirs[f"{prefix}.{position}.{direction}"][..., 0]
        if network.gains is not None:
            ours[f"gains.{i}"] = theirs[f"{prefix}.{position}.weight_g"].flatten()
        if network.biases is not None:
            ours[f"biases.{i}"] = theirs[f"{prefix}.{position}.bias"]
    for i, norm in enumerate(network.norms):
        inner = "layer_norm." if network.options.norm == "layer" else ""
        for name in norm.state_dict():
            ours[f"norms.{i}.{name}"] = theirs[f"{prefix}.{4 * i + 2}.{inner}{name}"]
    return ours


def resampling(length: int, train_length: int) -> tuple[Tensor, float]:
    """The published positions, oldest first, and how much coarser than in the training the input is sampled."""
    coarser = round(train_length / length) if train_length > length else 1 / round(length / train_length)
    step = 2.0 / (train_length - 1)
    beyond = -((train_length - 1) % coarser) if coarser > 1 else ((length - 1) % (1 / coarser)) * coarser
    return torch.linspace(-1, 1 + beyond * step, length, dtype=torch.float64), coarser


def draw(network: nn.Module, length: int, train_length: int, n_outputs: int) -> Tensor:
    """The published kernel (o, i, length), the present last."""
    position, coarser = resampling(length, train_length)
    taps = network(position)
    if coarser < 1:
        taps = smooth(taps, int(1 / coarser))
    return (coarser * taps).unflatten(0, (n_outputs, -1))


def convolution(config: Config) -> Published:
    """The convolution.  Where it keeps the number of channels and the length, it is our dense mixer."""
    n_inputs, n_outputs, length = config["in_channels"], config["out_channels"], config["L"]
    train_length, bias = config.get("train_length", length), config.get("bias", True)
    module: nn.Module
    if plain := n_inputs == n_outputs and length == train_length:
        module = CKConv(n_inputs, kernel_length=length, kernel=options(config), dense=True, bias=bias)
        network = module.network
    else:
        network = make_network(n_inputs * n_outputs, options(config), bias=bias)
        module = nn.ModuleDict({"network": network})
        if bias:
            module.register_parameter("bias", nn.Parameter(torch.zeros(n_outputs)))

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        drawn = network_weights(theirs, "Kernel.kernel_net", network)
        ours = {f"network.{name}": tensor for name, tensor in drawn.items()}
        return ours | {"bias": theirs["bias"]} if bias else ours

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        x = tensors["input"]
        if plain:
            kernel = module._dense_kernel(length).flip(-1)
            y = module(x.mT).mT
        else:
            kernel = draw(module["network"], length, train_length, n_outputs)
            y = dense_conv(x, kernel.flip(-1))
            y = y + module.bias[:, None] if bias else y
        results = {"output": y, "kernel": kernel}
        if "rel_positions" in tensors:
            results["rel_positions"] = resampling(length, train_length)[0][None, None]
        return {name: result for name, result in results.items() if name in tensors}

    return Published(module, weights, run, unchecked={"param/train_length": "ours is an option"})


def block(config: Config) -> Published:
    """The residual block."""
    n_inputs, n_outputs, length = config["in_channels"], config["out_channels"], config["L"]
    kernel = config | {
        "hidden_channels": config["kernelnet_hidden_channels"],
        "activation_function": config.get("activation", config.get("kernelnet_activation_function", "Sine")),
        "norm_type": config.get("norm_type", config.get("kernelnet_norm_type", "")),
    }
    bias = config.get("bias", True)
    module = nn.ModuleDict()
    for name, inputs in (("cconv1", n_inputs), ("cconv2", n_outputs)):
        module[name] = make_network(inputs * n_outputs, options(kernel), bias=bias)
        if bias:
            module.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(n_outputs)))
    for name in ("norm1", "norm2"):
        module[name] = nn.GroupNorm(1, n_outputs, eps=1e-12)
    if n_inputs != n_outputs:
        module["shortcut"] = nn.Linear(n_inputs, n_outputs)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = {}
        for name in ("cconv1", "cconv2"):
            drawn = network_weights(theirs, f"{name}.Kernel.kernel_net", module[name])  # pyright: ignore[reportArgumentType]
            ours |= {f"{name}.{inner}": tensor for inner, tensor in drawn.items()}
            if bias:
                ours[f"{name}_bias"] = theirs[f"{name}.bias"]
        for name in ("norm1", "norm2"):
            ours |= {f"{name}.{part}": theirs[f"{name}.layer_norm.{part}"] for part in ("weight", "bias")}
        if "shortcut" in module:
            ours["shortcut.weight"] = theirs["shortcut.0.weight"][..., 0]
            ours["shortcut.bias"] = theirs["shortcut.0.bias"]
        return ours

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        def branch(x: Tensor, number: int) -> Tensor:
            y = dense_conv(x, draw(module[f"cconv{number}"], length, length, n_outputs).flip(-1))
            y = y + getattr(module, f"cconv{number}_bias")[:, None] if bias else y
            return F.relu(module[f"norm{number}"](y))

        x = tensors["input"]
        straight = module["shortcut"](x.mT).mT if "shortcut" in module else x
        return {"output": F.relu(branch(branch(x, 1), 2) + straight)}

    unchecked = {f"param/{name}.train_length": "ours is an option" for name in ("cconv1", "cconv2")}
    return Published(module, weights, run, unchecked=unchecked)


class GivenKernel(nn.Module):
    """A dense convolution with a kernel that is given, the present last."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(0))
        self.bias = nn.Parameter(torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        """Applied to (b, i, l)."""
        return dense_conv(x, self.kernel.flip(-1)) + self.bias[:, None]


def given_kernel(config: Config) -> Published:
    """The convolution alone."""
    return Published(GivenKernel(), weights=lambda theirs: {name: theirs[name] for name in ("kernel", "bias")})
