"""Monarch Mixer as in github.com/HazyResearch/m2: the sequence mixer of M2-BERT, and its MLPs with their norm.

    MonarchMixerSequenceMixing   bert/src/mm/monarch_mixer_sequence_mixer.py
    BertMLP                      bert/src/bert_layers.py                       block-diagonal, norm after the sum
    BertGatedLinearUnitMLP       the same, gated

The published sines have a constant factor `w_mod` besides their trained frequencies; ours is in the frequencies.
"""

from typing import Any

from torch import Tensor, nn

from adapters import Published, Tensors
from longreach.mixers import FilterOptions, MonarchMixer
from longreach.mixers.implicit_filter import ImplicitFilter
from longreach.models.block_diagonal import BlockDiagonalMLP

Config = dict[str, Any]
FILTERS = {"filter": "filter_fn", "residual_filter": "filter_fn2"}
"""Ours -> theirs."""


def adapt(config: Config, metadata: dict[str, str]) -> Published:
    """Ours for the published class and options."""
    published_class = metadata["source"].rpartition(":")[2]
    if published_class == "MonarchMixerSequenceMixing":
        return sequence_mixer(config)
    return mlp(config, gated=published_class == "BertGatedLinearUnitMLP")


def build(config: Config) -> MonarchMixer:
    """Our mixer of the published options."""
    additions = config.get("hyena_training_additions", False)
    filter = FilterOptions(
        width=config.get("hyena_filter_order", 16),
        embedding_dim=config.get("hyena_emb_dim", 3),
        sine_frequency=float(config.get("hyena_w", 10) * config.get("hyena_w_mod", 1)),
        lr=config.get("hyena_kernel_lr"),
        weight_decay=config.get("hyena_wd", 0.1) > 0,
        features_lr=float(config.get("hyena_lr_pos_emb", 1e-5)),
    )
    return MonarchMixer(
        config["d_model"],
        max_length=config.get("l_max", 128),
        causal=not config.get("bidirectional", False),
        residual_conv=config.get("residual_long_conv", False),
        filter=filter,
        dropout=float(config.get("dropout", 0.0)) if additions else 0.0,
    )


def sequence_mixer(config: Config) -> Published:
    """The mixer; with the training additions a layer norm precedes it."""
    mixer = build(config)
    module = nn.ModuleDict({"mixer": mixer})
    if config.get("hyena_training_additions"):
        module["norm"] = nn.LayerNorm(config["d_model"])
    filters = {ours: theirs for ours, theirs in FILTERS.items() if getattr(mixer, ours) is not None}

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = {
            "projections.weight": theirs["in_linear.weight"],
            "projections.bias": theirs["in_linear.bias"],
            "short_weight": theirs["short_filter.weight"][:, 0],
            "short_bias": theirs["short_filter.bias"],
            "out.weight": theirs["out_linear.weight"],
            "out.bias": theirs["out_linear.bias"],
        }
        for own, published in filters.items():
            ours[own.replace("filter", "skip")] = theirs[f"{published}.bias"]
            drawn = filter_weights(theirs, published, getattr(mixer, own), config.get("hyena_w_mod", 1))
            ours |= {f"{own}.{name}": tensor for name, tensor in drawn.items()}
        ours = {f"mixer.{name}": tensor for name, tensor in ours.items()}
        if "norm" in module:
            ours |= {f"norm.{part}": theirs[f"layernorm.{part}"] for part in ("weight", "bias")}
        return ours

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        x, mixer = tensors["input"], module["mixer"]
        results = {"output": mixer(module["norm"](x) if "norm" in module else x)}
        results["kernel"] = mixer.filter(x.shape[1])[0].mT[None]
        if not mixer.causal:
            results["kernel_rev"] = mixer.filter.future(x.shape[1])[0].mT[None]
        return {name: result for name, result in results.items() if name in tensors}

    last = 2 * len(mixer.filter.weights) - 1
    tied = {
        f"{published}.implicit_filter{side}.{i}.freq": f"{published}.implicit_filter.1.freq"
        for published in filters.values()
        for side in ("", "_rev")
        for i in range(1, last + 1, 2)
    }
    unchecked = {f"param/{published}.pos_emb.t": "our time is computed" for published in filters.values()}
    return Published(module, weights, run, tied=tied, unchecked=unchecked)


def filter_weights(theirs: Tensors, published: str, filter: ImplicitFilter, factor: float) -> dict[str, Tensor]:
    """The networks of both directions, with the frequencies that they share, and the window."""
    ours = {
        "frequency": factor * theirs[f"{published}.implicit_filter.1.freq"][0],
        "features": theirs[f"{published}.pos_emb.z"][0],
        "decay": theirs[f"{published}.modulation.deltas"][0, 0],
    }
    sides = {"": "implicit_filter", "future_": "implicit_filter_rev"}
    for side, network in sides.items():
        if not hasattr(filter, f"{side}weights"):
            continue
        for i in range(len(filter.weights)):
            ours[f"{side}weights.{i}"] = theirs[f"{published}.{network}.{2 * i}.weight"]
            ours[f"{side}biases.{i}"] = theirs[f"{published}.{network}.{2 * i}.bias"]
        ours[f"{side}output"] = theirs[f"{published}.{network}.{2 * len(filter.weights)}.weight"]
    return ours


def mlp(config: Config, *, gated: bool) -> Published:
    """The MLP with what surrounds it: the sum with its input, and a norm."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    n_blocks = config.get("nblocks", config.get("monarch_mlp_nblocks", 4))
    if not config.get("use_monarch_mlp", True):
        n_blocks = 1
    mixer = BlockDiagonalMLP(width, expand=inner / width, n_blocks=n_blocks, gated=gated)
    norm = nn.LayerNorm(width, eps=config.get("layer_norm_eps", 1e-12))
    module = nn.ModuleDict({"mlp": mixer, "norm": norm})

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        return {
            "mlp.up.weight": theirs["gated_layers.weight"].view(mixer.up.weight.shape),
            "mlp.down.weight": theirs["wo.weight"].view(mixer.down.weight.shape),
            "mlp.down.bias": theirs["wo.bias"],
            "norm.weight": theirs["layernorm.weight"],
            "norm.bias": theirs["layernorm.bias"],
        }

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        x = tensors["input"]
        return {"output": module["norm"](module["mlp"](x) + x)}

    return Published(module, weights, run)
