"""S5 as published in JAX (github.com/lindermanlab/S5) and in PyTorch (github.com/i404788/s5-pytorch).

    make_DPLR_HiPPO                       where A starts
    S5SSM                                 the system, with its states
    SequenceLayer                         norm, system, output stage, residual connection
    ClassificationModel, RetrievalModel   a stack of layers, the mean over the length, a decoder
    S5, S5Block                           PyTorch: the system with all modes; a block with a gated map behind it

Both count the present position in both directions.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters import Declined, Published, Tensors
from longreach import ops
from longreach.hippo import low_rank, transition
from longreach.mixers import S5, S5Options
from longreach.mixers.s5 import S5State, _drive, _eigenvectors, _read
from longreach.models import Block, S5Gate


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published class and options."""
    if "s5-pytorch" in metadata["source"]:
        if (
            config.get("degree", 1) != 1
            or config.get("factor_rank") is not None
            or config.get("bcInit") == "factorized"
        ):
            return Declined("degree, factor_rank and bcInit='factorized': raise an error in the published code")
        return block(config) if config.get("block", False) else torch_system(config)
    adapters: dict[str | None, Callable[..., Published]] = {
        None: start, "S5SSM": system, "SequenceLayer": layer, "ClassificationModel": model, "RetrievalModel": model,
    }  # fmt: skip
    return adapters[config.get("cls")](config)


def start(config: dict[str, Any]) -> Published:
    """A, B and P of HiPPO-LegS in the eigenvectors that the start uses; their phases are arbitrary."""

    def run(_: Any, tensors: Tensors) -> dict[str, Tensor]:
        frequency, V = _eigenvectors(config["N"], half=False)
        _, B = transition("legs", config["N"])
        in_basis = {
            name: (V.mH @ value.to(V.dtype)).abs() for name, value in (("absB", B), ("absP", low_rank_vector(config)))
        }
        return {"Lambda": torch.stack([torch.full_like(frequency, -0.5), frequency], dim=-1), "B_orig": B, **in_basis}

    return Published(nn.Identity(), lambda theirs: {}, run)


def low_rank_vector(config: dict[str, Any]) -> Tensor:
    """The vector P of HiPPO-LegS."""
    return low_rank("legs", config["N"]).flatten()


def build(config: dict[str, Any], rate: float) -> S5:
    """Our mixer for the published JAX options."""
    return S5(
        config["H"],
        d_state=config["ssm_size"],
        n_blocks=config.get("blocks", 1),
        discretisation=config.get("discretization", "zoh"),
        causal=not config.get("bidirectional", False),
        options=S5Options(conjugate_pairs=config.get("conj_sym", True), clip=config.get("clip_eigs", False), rate=rate),
    )


def system_weights(theirs: Tensors, mixer: S5, prefix: str = "") -> dict[str, Tensor]:
    """The parameters of the JAX system: two matrices C, or one twice as wide, where it reads both directions."""
    if mixer.causal:
        C = theirs[f"{prefix}C"][None]
    elif f"{prefix}C1" in theirs:
        C = torch.stack([theirs[f"{prefix}C1"], theirs[f"{prefix}C2"]])
    else:
        C = theirs[f"{prefix}C"].unflatten(1, (2, -1)).transpose(0, 1)
    return {
        "A_real": theirs[f"{prefix}Lambda_re"],
        "A_imag": theirs[f"{prefix}Lambda_im"],
        "log_dt": theirs[f"{prefix}log_step"][:, 0],
        "B": theirs[f"{prefix}B"],
        "C": C,
        "D": theirs[f"{prefix}D"],
    }


def system(config: dict[str, Any]) -> Published:
    """The system on one sequence (L, H)."""

    def run(mixer: Any, tensors: Tensors) -> dict[str, Tensor]:
        x = tensors["input"][None]
        abar, bbar, _ = mixer._system()
        results = {
            "output": mixer(x)[0],
            "states": torch.view_as_real(scanned(mixer, x, None)[1][0]),
            "Lambda_bar": torch.view_as_real(abar),
            "B_bar": torch.view_as_real(bbar),
        }
        if mixer.causal:
            _, state = mixer.prefill(x, mixer.init_state(1))
            results["state/final"] = torch.view_as_real(state.modes[0])
        return results

    mixer = build(config, config.get("step_rescale", 1.0))
    return Published(mixer, lambda theirs: system_weights(theirs, mixer), run)


def build_layer(config: dict[str, Any], options: dict[str, Any], rate: float) -> Block:
    """One layer of ours, in which layer norm has the epsilon of flax."""
    batch = options.get("batchnorm", False)
    layer = Block(
        build(config, rate),
        S5Gate(config["H"], form=options.get("activation", "gelu")),
        layout="joint",
        norm="batch" if batch else "layer",
        norm_position="pre" if options.get("prenorm", False) else "post",
    )
    cast(Any, layer.norm).eps = 1e-5 if batch else 1e-6
    return layer


def layer_weights(theirs: Tensors, ours: Block, name: str = "") -> dict[str, Tensor]:
    """The parameters of a layer; `name` is its path, with a slash at the end."""
    found = {
        f"mixer.{key}": value for key, value in system_weights(theirs, cast(S5, ours.mixer), f"{name}seq/").items()
    }
    found |= {"norm.weight": theirs[f"{name}norm/scale"], "norm.bias": theirs[f"{name}norm/bias"]}
    if f"batch_stats/{name}norm/mean" in theirs:
        found |= {
            "norm.running_mean": theirs[f"batch_stats/{name}norm/mean"].detach(),
            "norm.running_var": theirs[f"batch_stats/{name}norm/var"].detach(),
            "norm.num_batches_tracked": torch.tensor(0),
        }
    maps = [dense(theirs, f"{name}{out}") for out in ("out1", "out2") if f"{name}{out}/kernel" in theirs]
    if maps:
        found |= {f"channel_mixer.linear.{key}": torch.cat([one[key] for one in maps]) for key in ("weight", "bias")}
    return found


def dense(theirs: Tensors, name: str) -> dict[str, Tensor]:
    """A linear map of flax as one of torch."""
    return {"weight": theirs[f"{name}/kernel"].mT, "bias": theirs[f"{name}/bias"]}


def apply_layer(layer: Any, x: Tensor) -> Tensor:
    """A layer on sequences without padding."""
    y, _ = layer(x, lambda u: (layer.mixer(u), None))
    return y


def layer(config: dict[str, Any]) -> Published:
    """One layer."""
    ours = build_layer(config["ssm"], config["layer"], config.get("step_rescale", 1.0))

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        module.norm.train(config.get("training", False))  # batch norm by the statistics of this batch
        return {"output": apply_layer(module, tensors["input"])}

    return Published(ours, lambda theirs: layer_weights(theirs, ours), run)


def model(config: dict[str, Any]) -> Published:
    """A classifier, or a classifier of pairs: the first half of the batch with the second.

    As published, the layers see the padding; only the mean leaves it out.
    """
    options, retrieval = config["model"], config.get("retrieval", False)
    width = config["ssm"]["H"]
    layers = [build_layer(config["ssm"], options, options.get("step_rescale", 1.0)) for _ in range(options["n_layers"])]
    decoders = ["layer1", "layer2"] if retrieval else [""]
    module = nn.ModuleDict({"layers": nn.ModuleList(layers), "encoder": nn.LazyLinear(width)})
    module.update({f"decoder{name}": nn.LazyLinear(1) for name in decoders})

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = {f"encoder.{key}": value for key, value in dense(theirs, "encoder/encoder").items()}
        for i, one in enumerate(layers):
            found = layer_weights(theirs, one, f"encoder/layers_{i}/")
            ours |= {f"layers.{i}.{key}": value for key, value in found.items()}
        for name in decoders:
            found = dense(theirs, f"decoder/{name}".removesuffix("/"))
            ours |= {f"decoder{name}.{key}": value for key, value in found.items()}
        return ours

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        x = module["encoder"](tensors["input"])
        for one in module["layers"]:
            x = apply_layer(one, x)
        pooled = pool(x, tensors["lengths"] if config.get("padded", False) else None, options.get("mode", "pool"))
        if not retrieval:
            return {"output": module["decoder"](pooled).log_softmax(-1)}
        first, second = pooled.chunk(2)
        features = torch.cat([first, second, first - second, first * second], dim=-1)
        hidden = F.gelu(module["decoderlayer1"](features), approximate="tanh")
        return {"output": module["decoderlayer2"](hidden).log_softmax(-1)}

    return Published(module, weights, run)


def pool(x: Tensor, lengths: Tensor | None, mode: str) -> Tensor:
    """One vector for a sequence: the last one, or the mean over its length."""
    if lengths is None:
        return x.mean(1) if mode == "pool" else x[:, -1]
    mask = torch.arange(x.shape[1]) < lengths[:, None]
    return (mask[..., None] * x).sum(1) / lengths[:, None]


def build_torch(config: dict[str, Any], *, causal: bool, liquid: bool) -> S5:
    """Our mixer for the options of the PyTorch version, which keeps all modes."""
    width = config.get("width", config.get("dim"))
    return S5(
        cast(int, width),
        d_state=config.get("state_width", config.get("state_dim")) or cast(int, width),
        n_blocks=config.get("block_count", 1),
        discretisation=config.get("discretization", "zoh"),
        causal=causal,
        options=S5Options(conjugate_pairs=False, rate=config.get("step_scale", 1.0), liquid=liquid),
    )


def torch_weights(theirs: Tensors, prefix: str, directions: int) -> dict[str, Tensor]:
    """The parameters of the PyTorch system."""
    return {
        "A_real": theirs[f"{prefix}Lambda"][:, 0],
        "A_imag": theirs[f"{prefix}Lambda"][:, 1],
        "log_dt": theirs[f"{prefix}log_step"].flatten(),
        "B": theirs[f"{prefix}B"],
        "C": theirs[f"{prefix}C"].unflatten(1, (directions, -1)).transpose(0, 1),
        "D": theirs[f"{prefix}D"],
    }


def torch_system(config: dict[str, Any]) -> Published:
    """The PyTorch system with its states, from a given one on.

    As published, only the forward direction is liquid, the first step from a given state is not, and that state also
    enters the first position of the backward direction.  In these cases the mixer has other results.
    """
    bidirectional, liquid = config.get("bidir", False), config.get("liquid", False)
    mixer = build_torch(config, causal=not bidirectional, liquid=liquid)

    def run(mixer: Any, tensors: Tensors) -> dict[str, Tensor]:
        x, initial = tensors["input"], None
        if "state/0" in tensors:
            initial = torch.view_as_complex(tensors["state/0"])
        output, states = scanned(mixer, x, initial)
        last = states[:, -1]
        if mixer.causal and not (liquid and initial is not None):
            output, state = mixer.prefill(x, mixer.init_state(len(x)) if initial is None else S5State(initial))
            last = state.modes
        if initial is None and not (liquid and bidirectional):
            output = mixer(x)
        results = {"output": output}
        if "states" in tensors:
            results["states"] = torch.view_as_real(states)
        if "state/L" in tensors:
            results["state/L"] = torch.view_as_real(last)
        if "step_output" in tensors:
            results["step_output"] = steps(mixer, x, mixer.init_state(len(x)) if initial is None else S5State(initial))
        return results

    return Published(mixer, lambda theirs: torch_weights(theirs, "seq.", 2 if bidirectional else 1), run)


def scanned(mixer: S5, x: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """The published scans: a given state is added to what drives the first position."""
    abar, bbar, (past, *future) = mixer._system()
    drive = _drive(x, bbar)
    if initial is not None:
        drive = torch.cat([drive[:, :1] + (abar * initial)[:, None], drive[:, 1:]], dim=1)
    rest = torch.zeros_like(drive[:, 0])
    states = ops.linear_scan(mixer._ratio(abar, drive), drive, rest)
    y = _read(states, past) + mixer.D * x
    for C in future:
        y = y + _read(ops.linear_scan(abar.expand_as(drive), drive.flip(1), rest).flip(1), C)
    return y, states


def steps(mixer: S5, x: Tensor, state: S5State) -> Tensor:
    """One position after the other."""
    outputs = []
    for x_t in x.unbind(1):
        y, state = mixer.step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1)


def block(config: dict[str, Any]) -> Published:
    """The PyTorch block, whose residual connections start behind the norms."""
    inner = torch_system(config)
    width = config["dim"]
    glu = config.get("glu", True)
    wide = int(width * config.get("ff_mult", 1.0))
    module = nn.ModuleDict({"s5": inner.module, "attn_norm": nn.LayerNorm(width), "ff_norm": nn.LayerNorm(width)})
    module["ff_enc"] = nn.Linear(width, wide * (1 + glu), bias=False)
    module["ff_dec"] = nn.Linear(wide, width, bias=False)
    others = [name for name, _ in module.named_parameters() if not name.startswith("s5.")]

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = inner.weights(cast(Tensors, Within(theirs, "s5.")))
        return {f"s5.{key}": value for key, value in ours.items()} | {name: theirs[name] for name in others}

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        x = module["attn_norm"](tensors["input"])
        y = inner.run(module["s5"], cast(Tensors, {"input": x}))["output"]
        x = module["ff_norm"](F.gelu(y) + x)
        hidden = module["ff_enc"](x)
        if glu:
            value, gate = hidden.chunk(2, dim=-1)
            hidden = value * F.gelu(gate)
        return {"output": module["ff_dec"](hidden) + x}

    return Published(module, weights, run)


class Within:
    """The tensors whose names begin with a prefix, without it."""

    def __init__(self, tensors: Tensors, prefix: str) -> None:
        self.tensors, self.prefix = tensors, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name]
