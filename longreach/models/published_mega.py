"""How published Mega language models are stored (the fork of fairseq at facebookresearch/mega).

    h = sqrt(d) E[tokens], then the layers (longreach.models.published_mega_layer); logits = h W^T

The options are those of fairseq's `mega_lm`.  What tensors do not tell has to be in the config: `decoder_chunk_size`,
`attention_activation_fn`, `activation_fn`, `truncation_length`, `no_scale_embedding`, and `normalize_before` where the
last norm has no weights.

Published: fairseq/models/mega_lm.py.
"""

import math
import re
from typing import Any, cast

from longreach.errors import InputError
from longreach.models.backbone import Backbone
from longreach.models.language_model import LanguageModel
from longreach.models.normalised_input import NormalisedInput
from longreach.models.published_layout import Config, Layout, Rule, Shapes, completed, refuse_unknown
from longreach.models.published_mega_layer import NORMS, backbone_rules, build_backbone, norm_rules

EMBEDDING, HEAD = "embed_tokens.weight", "output_projection.weight"
ROOT = "layers.0.mega_layer.move.omega"

DEFAULTS: dict[str, Any] = {
    "decoder_chunk_size": -1,
    "activation_fn": "silu",
    "attention_activation_fn": "softmax",
    "truncation_length": 2048,
    "max_target_positions": 1024,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
    "feature_dropout": False,
    "rel_pos_bias": "simple",
    "normalization_type": "layernorm",
    "normalize_before": False,
    "no_affine_final_norm": False,
    "normalize_embedding": False,
    "no_scale_embedding": False,
    "share_decoder_input_output_embed": False,
}
SIZES = {
    "vocab_size", "decoder_layers", "decoder_embed_dim", "decoder_hidden_dim", "decoder_ffn_embed_dim", "decoder_z_dim",
    "decoder_n_dim",
}  # fmt: skip
ONLY = {"adaptive_input": False, "adaptive_softmax_cutoff": None}
WITHOUT_EFFECT = {
    "decoder_embed_path", "decoder_input_dim", "padding_idx", "share_all_embeddings", "tie_adaptive_weights",
    "tie_adaptive_proj", "adaptive_softmax_dropout", "adaptive_softmax_factor", "adaptive_input_factor",
    "adaptive_input_cutoff",
}  # fmt: skip
"""Options that change nothing in what is offered."""


def build(config: Config, variant: str) -> LanguageModel:
    """Ours for a published language model."""
    refuse_unknown(config, {*SIZES, *DEFAULTS, *ONLY, *WITHOUT_EFFECT}, ONLY, "a Mega language model")
    given = DEFAULTS | dict(config)
    width = given["decoder_embed_dim"]
    if given.get("decoder_input_dim", width) != width:
        raise InputError(f"published config: decoder_input_dim={given['decoder_input_dim']}; offered: {width}")
    layer = {
        "embed_dim": width,
        "zdim": given["decoder_z_dim"],
        "hdim": given["decoder_hidden_dim"],
        "ndim": given["decoder_n_dim"],
        "chunk_size": given["decoder_chunk_size"],
        "truncation": given["truncation_length"],
        "activation": given["activation_fn"],
        "attention_activation": given["attention_activation_fn"],
        "norm_type": given["normalization_type"],
        "prenorm": given["normalize_before"],
        "max_positions": given["max_target_positions"],
    }
    shared = ("dropout", "attention_dropout", "hidden_dropout", "feature_dropout", "rel_pos_bias")
    backbone = build_backbone(
        layer | {name: given[name] for name in shared},
        n_layers=given["decoder_layers"],
        d_inner=given["decoder_ffn_embed_dim"],
        activation_dropout=float(given["activation_dropout"]),
        final_affine=not given["no_affine_final_norm"],
    )
    outside, dropout = backbone, float(given["dropout"])
    if given["normalize_embedding"]:  # the published dropout comes after the norm
        outside = NormalisedInput(backbone, norm=NORMS[given["normalization_type"]], dropout=dropout)
        dropout = 0.0
    return LanguageModel(
        given["vocab_size"],
        outside,
        tied=given["share_decoder_input_output_embed"],
        dropout=dropout,
        init_std=width**-0.5,
        embedding_scale=1.0 if given["no_scale_embedding"] else math.sqrt(width),
    )


def rules(model: LanguageModel, variant: str, config: Config) -> list[Rule]:
    """Where every tensor of a model comes from."""
    found = [Rule("embedding.weight", EMBEDDING, tuple(model.embedding.weight.shape))]
    if model.head is not None:
        found.append(Rule("head.weight", HEAD, tuple(model.head.weight.shape)))
    backbone, where = model.backbone, "backbone"
    if isinstance(backbone, NormalisedInput):
        found += norm_rules("backbone.norm", "embed_norm", backbone.norm)
        backbone, where = backbone.inner, "backbone.inner"
    return found + [rule._replace(ours=f"{where}.{rule.ours}") for rule in backbone_rules(cast(Backbone, backbone))]


def essential(shapes: Shapes) -> dict[str, int]:
    """The tensors that `infer` looks at, and their numbers of axes."""
    inside = {"move.delta": 3, "gamma": 2, "v_proj.weight": 2}
    return {EMBEDDING: 2, ROOT: 1, **{f"layers.0.mega_layer.{name}": axes for name, axes in inside.items()}}


def infer(shapes: Shapes) -> dict[str, Any]:
    """The options of a published model that can be read off its tensors."""
    layer = "layers.0.mega_layer."
    found: dict[str, Any] = {
        "vocab_size": shapes[EMBEDDING][0],
        "decoder_embed_dim": shapes[EMBEDDING][1],
        "decoder_layers": len({match[1] for name in shapes if (match := re.match(r"layers\.(\d+)\.", name))}),
        "decoder_hidden_dim": shapes[f"{layer}v_proj.weight"][0],
        "decoder_ffn_embed_dim": shapes.get("layers.0.nffn.fc1.weight", (0,))[0],
        "decoder_z_dim": shapes[f"{layer}gamma"][1],
        "decoder_n_dim": shapes[f"{layer}move.delta"][1],
        "rel_pos_bias": "simple" if f"{layer}rel_pos_bias.rel_pos_bias" in shapes else "rotary",
        "normalization_type": "scalenorm" if f"{layer}norm.norm.scalar" in shapes else "layernorm",
    }
    for option, norm in (("normalize_before", "final_norm"), ("normalize_embedding", "embed_norm")):
        if f"{norm}.norm.weight" in shapes or f"{norm}.norm.scalar" in shapes:
            found[option] = True
    found["share_decoder_input_output_embed"] = HEAD not in shapes
    return found


def merge(config: Config, inferred: Config) -> tuple[dict[str, Any], list[str]]:
    """The published config completed by what was inferred, and where the two contradict each other.

    An output projection that is stored is loaded, even if it was the embedding again in training.
    """
    told = {name: known for name, known in inferred.items() if name != "share_decoder_input_output_embed"}
    return {**config, **inferred}, completed(config, told)[1]


def tied(names: Config) -> dict[str, str]:
    """Published names of the same tensor -> the one that the rules read: shapes alone do not tell any."""
    return {}


def ignored(name: str, config: Config) -> bool:
    """Whether no rule needs this tensor: a mark of the device, or the version of the code."""
    return name == "version" or name.endswith(".rel_pos_bias._float_tensor")


LAYOUT = Layout(ROOT, ("fairseq",), essential, infer, merge, build, rules, tied, ignored)
