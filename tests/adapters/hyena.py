"""safari's Hyena operator, filter, position features and short convolution (src/models/sequence/hyena.py)."""

from typing import Any

import torch
from torch import Tensor, nn

from adapters import Declined, Published, Tensors
from longreach.errors import InputError
from longreach.mixers import Hyena
from longreach.mixers.implicit_filter import ImplicitFilter, position_features
from longreach.mixers.short_projection import project, shorten
from longreach.models.published_hyena import Rule, Variant, build_hyena, filter_options, filter_rules, hyena_rules
from longreach.models.published_layout import assemble
from longreach.ops import short_conv


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for one of the four published things."""
    source = metadata["source"]
    variant: Variant = "standalone" if "standalone" in source else "safari"
    config = {name: value for name, value in config.items() if name != "L"}
    try:
        if "PositionalEmbedding" in source:
            return initial_filter(config)
        if "short_filter" in source:
            return short_filter(config)
        if "HyenaFilter" in source:
            return filter_alone(config, variant)
        return operator(config, variant)
    except InputError as error:
        return Declined(str(error))


def apply(rules: list[Rule], theirs: Tensors) -> dict[str, Tensor]:
    """Our weights, made from the published ones; their shapes must be those that the rules state."""
    for rule in rules:
        assert theirs[rule.theirs].shape == rule.shape, rule
    return assemble(rules, theirs)


def frequencies(prefix: str, layers: int) -> dict[str, str]:
    """The names that all stand for the frequencies of the sines."""
    return {f"{prefix}.{2 * i + 1}.freq": f"{prefix}.1.freq" for i in range(1, layers)}


def operator(config: dict[str, Any], variant: Variant) -> Published:
    """HyenaOperator, with its kernels and what its short convolution gives."""
    mixer = build_hyena(config, variant)
    rules = hyena_rules(mixer, variant)

    def run(mixer: Hyena, tensors: Tensors) -> dict[str, Tensor]:
        x = tensors["input"]
        kernel = mixer.filter(x.shape[1])  # (o, d, l)
        if variant == "safari":
            kernel = kernel.transpose(0, 1)
        short_out = shorten(
            project(x, mixer.projections.weight, mixer.projections.bias, None),
            mixer.short_weight,
            mixer.short_bias,
            None,
            None,
        )
        return {"output": mixer(x), "kernel": kernel.flatten(0, 1).mT[None], "short_out": short_out}

    off = {} if mixer.filter.options.modulate else {"param/filter_fn.modulation.deltas": "there is no modulation"}
    if mixer.skip is None:
        off["param/filter_fn.bias"] = "the published code multiplies it with zero"
    return Published(
        mixer,
        weights=lambda theirs: apply(rules, theirs),
        run=run,
        tied=frequencies("filter_fn.implicit_filter", len(mixer.filter.weights)),
        unchecked={"param/filter_fn.pos_emb.t": "our time is computed", **off},
    )


def filter_alone(config: dict[str, Any], variant: Variant) -> Published:
    """HyenaFilter.filter: the taps of one filter for each channel.  Here `order` is the width of the network."""
    names = {"order": "filter_order", "seq_len": "l_max"}
    config = {"filter_order": 16, "l_max": 1024} | {names.get(name, name): value for name, value in config.items()}
    options = filter_options(config, variant)
    module = ImplicitFilter(config["d_model"], n_filters=1, length=config["l_max"], options=options)
    rules = filter_rules(module, variant)

    def run(module: ImplicitFilter, tensors: Tensors) -> dict[str, Tensor]:
        return {"output": module(tensors["cotangent"].shape[1])[0].mT[None]}

    unchecked = {"param/pos_emb.t": "our time is computed", "param/bias": "the filter alone does not use it"}
    if not options.modulate:
        unchecked["param/modulation.deltas"] = "there is no modulation"
    return Published(
        module,
        weights=lambda theirs: apply(rules, theirs),
        run=run,
        tied=frequencies("implicit_filter", len(module.weights)),
        unchecked=unchecked,
    )


def initial_filter(config: dict[str, Any]) -> Published:
    """PositionalEmbedding and ExponentialModulation as they are initialised: features and windows."""
    named = {{"seq_len": "l_max"}.get(name, name): value for name, value in config.items()}
    options = filter_options(named, "safari")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        module = ImplicitFilter(config["d_model"], n_filters=1, length=config["seq_len"], options=options)
    finally:
        torch.set_default_dtype(default)

    def run(module: ImplicitFilter, tensors: Tensors) -> dict[str, Tensor]:
        features = position_features(config["seq_len"], config["emb_dim"])
        window = module.window(config["seq_len"]).mT[None]
        return {"output": features[None], "decay": window, "param/deltas": -module.decay[None, None]}

    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    return Published(
        module,
        weights=lambda theirs: own,
        run=run,
        unchecked={"param/t": "our time is computed"},
    )


class ShortConv(nn.Module):
    """Our operator as a module."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, width))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return short_conv(x, self.weight, self.bias)


def short_filter(config: dict[str, Any]) -> Published:
    """The depthwise Conv1d, cut to the length of its input."""
    return Published(
        ShortConv(config["channels"], config["kernel_size"]),
        weights=lambda theirs: {"weight": theirs["weight"][:, 0], "bias": theirs["bias"]},
    )
