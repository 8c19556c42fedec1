"""How published Hyena operators are stored, and what ours are called (safari, HyenaDNA and their standalone files).

A layout is a list of rules, one for each of our tensors: what it is called there, which shape it has there, and the
view that makes it ours.  The configs are the published ones, their defaults included; `infer` reads off the shapes what
they tell.

Published: HazyResearch/safari src/models/sequence/hyena.py, HazyResearch/hyena-dna standalone_hyenadna.py.  The first
numbers the filters (d o), the second (o d), as we do.

Axes: d model width, o long filters of a channel.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor

from longreach.errors import InputError
from longreach.mixers.hyena import Activation, Hyena
from longreach.mixers.implicit_filter import FilterOptions, ImplicitFilter
from longreach.models.published_layout import Config, Rule, Shapes, refuse_unknown

Variant = Literal["safari", "standalone"]
"""Whose code: safari and hyena-dna's src, or the standalone files (and the Hugging Face port) of Hyena and HyenaDNA."""

ACTIVATIONS: dict[str | None, Activation] = {
    **dict.fromkeys([None, "id", "identity", "linear", "modrelu"], "identity"),
    **dict.fromkeys(["swish", "silu"], "silu"),
    "tanh": "tanh",
    "relu": "relu",
    "gelu": "gelu",
    "elu": "elu",
    "sigmoid": "sigmoid",
    "sqrelu": "squared_relu",
}
"""modrelu: the published table of activations has it do nothing."""

DEFAULTS: dict[str, Any] = {
    "order": 2,
    "short_filter_order": 3,
    "activation": "id",
    "outer_mixing": False,
    "post_order_ffn": False,
    "dropout": 0.0,
    "filter_order": 64,
    "emb_dim": 3,
    "num_inner_mlps": 2,
    "w": 1,
    "modulate": True,
    "fast_decay_pct": 0.3,
    "slow_decay_pct": 1.5,
    "target": 1e-2,
    "normalized": False,
    "bias": True,
    "lr": 1e-3,
    "lr_pos_emb": 1e-5,
    "modulation_lr": 0.0,
}
"""Of both variants; `shift` has one for each, `d_model` and `l_max` have none."""

SHIFT = {"safari": 0.0, "standalone": 0.05}

ONLY = {"num_heads": 1, "inner_factor": 1, "num_blocks": 1, "jit_filter": False, "bidirectional": False}
"""Options of which the published code itself runs correctly with one value only."""

WITHOUT_EFFECT = {
    "_name_", "filter_cls", "fused_bias_fc", "fused_fft_conv", "filter_dropout", "return_state", "local_order", "wd",
}  # fmt: skip
"""Options that change nothing in what is computed (`wd`: filters never decay here)."""

ESSENTIAL = {
    "in_proj.weight": 2,
    "short_filter.weight": 3,
    "filter_fn.pos_emb.z": 3,
    "filter_fn.implicit_filter.0.weight": 2,
}
"""The tensors that `infer` looks at, and their numbers of axes."""


def infer(shapes: Shapes) -> dict[str, Any]:
    """The options of a published operator that can be read off its tensors."""
    rows, d_model = shapes["in_proj.weight"]
    filter_order, emb_dim = shapes["filter_fn.implicit_filter.0.weight"]
    layers = [name for name in shapes if re.fullmatch(r"filter_fn\.implicit_filter\.\d+\.weight", name)]
    return {
        "d_model": d_model,
        "order": rows // d_model - 1,
        "l_max": shapes["filter_fn.pos_emb.z"][1],
        "short_filter_order": shapes["short_filter.weight"][2],
        "post_order_ffn": "ord_proj_w" in shapes,
        "filter_order": filter_order,
        "emb_dim": emb_dim,
        "num_inner_mlps": len(layers) - 2,
    }


def build_hyena(config: Config, variant: Variant) -> Hyena:
    """Ours for a published operator.  `config` must have `d_model` and `l_max`."""
    refuse_unknown(config, {"d_model", "l_max", "shift", *DEFAULTS, *ONLY, *WITHOUT_EFFECT}, ONLY, "a Hyena operator")
    given = DEFAULTS | dict(config)
    if given["activation"] not in ACTIVATIONS:
        raise InputError(f"activation={given['activation']!r}: Hyena offers {sorted(filter(None, ACTIVATIONS))}")
    return Hyena(
        given["d_model"],
        max_length=given["l_max"],
        order=given["order"],
        short_width=given["short_filter_order"],
        filter=filter_options(config, variant),
        activation=ACTIVATIONS[given["activation"]],
        outer_mixing=given["outer_mixing"],
        stage_scale=given["post_order_ffn"],
        dropout=float(given["dropout"]),
    )


def filter_options(config: Config, variant: Variant) -> FilterOptions:
    """Ours for the options of a published filter, under the names that the operator passes them on with."""
    given: dict[str, Any] = {**DEFAULTS, "shift": SHIFT[variant], **config}
    return FilterOptions(
        width=given["filter_order"],
        embedding_dim=given["emb_dim"],
        n_inner_layers=given["num_inner_mlps"],
        sine_frequency=float(given["w"]),
        modulate=given["modulate"],
        shift=float(given["shift"]),
        fast_decay=float(given["fast_decay_pct"]),
        slow_decay=float(given["slow_decay_pct"]),
        target=float(given["target"]),
        decay_order="interleaved" if variant == "safari" else "stacked",
        normalise=given["normalized"],
        skip=given["bias"],
        lr=float(given["lr"]),
        features_lr=float(given["lr_pos_emb"]),
        decay_lr=float(given["modulation_lr"]),
    )


def hyena_rules(mixer: Hyena, variant: Variant) -> list[Rule]:
    """Where every tensor of an operator comes from."""
    d, order, channels = mixer.d_model, mixer.order, (mixer.order + 1) * mixer.d_model
    rules = [
        Rule("projections.weight", "in_proj.weight", (channels, d)),
        Rule("projections.bias", "in_proj.bias", (channels,)),
        Rule("short_weight", "short_filter.weight", (channels, 1, mixer.short_width), lambda weight: weight[:, 0]),
        Rule("short_bias", "short_filter.bias", (channels,)),
        Rule("out.weight", "out_proj.weight", (d, d)),
        Rule("out.bias", "out_proj.bias", (d,)),
    ]
    if mixer.skip is not None:
        shape = ((order - 1) * d,)
        view = _stages_first(order - 1, variant)
        rules.append(Rule("skip", "filter_fn.bias", shape, lambda bias: view(bias).view(order - 1, d)))
    if mixer.stage_scale is not None:  # the published tensor has one factor more than there are convolutions
        rules.append(Rule("stage_scale", "ord_proj_w", (order, 1, 1), lambda factors: factors[:-1, 0, 0]))
    return rules + [rule.within("filter", "filter_fn") for rule in filter_rules(mixer.filter, variant)]


def filter_rules(filter: ImplicitFilter, variant: Variant) -> list[Rule]:
    """Where every tensor of a filter comes from."""
    stages_first = _stages_first(filter.n_filters, variant)
    count, (channels, width) = len(filter.weights), filter.output.shape
    rules = [
        Rule("output", f"implicit_filter.{2 * count}.weight", (channels, width), stages_first),
        Rule("frequency", "implicit_filter.1.freq", (1, width), lambda frequency: frequency[0]),
        Rule("features", "pos_emb.z", (1, *filter.features.shape), lambda features: features[0]),
    ]
    for i, weight in enumerate(filter.weights):
        rules.append(Rule(f"weights.{i}", f"implicit_filter.{2 * i}.weight", tuple(weight.shape)))
        rules.append(Rule(f"biases.{i}", f"implicit_filter.{2 * i}.bias", (width,)))
    if filter.options.modulate:
        rules.append(Rule("decay", "modulation.deltas", (1, 1, channels), lambda rates: stages_first(rates[0, 0])))
    return rules


def _stages_first(n_filters: int, variant: Variant) -> Callable[[Tensor], Tensor]:
    """Filters in our order (o d) from the published one."""
    if variant == "standalone":
        return lambda tensor: tensor
    return lambda tensor: tensor.unflatten(0, (-1, n_filters)).transpose(0, 1).flatten(0, 1)


def tied(names: Mapping[str, Any]) -> dict[str, str]:
    """Published names of the same tensor -> the one that the rules read: all sines share their frequencies."""
    found = {}
    for name in names:
        if (match := re.fullmatch(r"(.*implicit_filter\.)(\d+)\.freq", name)) and match[2] != "1":
            found[name] = f"{match[1]}1.freq"
    return found
