"""How StripedHyena language models are stored, the first and the second (which is also Evo 2).

    x + filter(pre_norm x) or x + attention(pre_norm x), then x + mlp(post_norm x); a last norm; an output projection

The first has filters of complex modes (hyena_layer_idxs); the second of real modes (hcl_layer_idxs) and two kinds of
explicit ones (hcm_layer_idxs, hcs_layer_idxs).  Attention is rotary, with grouped keys and values.  The norm has its
eps outside the root, but inside where it is the fused one (use_flash_rmsnorm).

Published: togethercomputer/stripedhyena stripedhyena/model.py, Zymrael/vortex vortex/model/model.py.
"""

import re
from typing import Any

from torch import nn

from longreach.errors import InputError
from longreach.mixers.attention import Attention
from longreach.mixers.base import SequenceMixer
from longreach.mixers.norms import RMSNormOutside
from longreach.mixers.striped_hyena import StripedHyena
from longreach.models import published_striped_filter
from longreach.models.backbone import Backbone, Block
from longreach.models.channel_mixers import Activation, GatedMLP
from longreach.models.language_model import LanguageModel
from longreach.models.published_layout import Config, Layout, Rule, Shapes, completed, refuse_unknown, same
from longreach.models.published_striped_filter import NEWEST_FIRST, build_filter, filter_rules

EMBEDDING, HEAD = "embedding_layer.weight", "unembed.weight"
QKV = "inner_mha_cls.Wqkv.weight"

NEEDED = {"hidden_size", "vocab_size", "num_layers", "num_attention_heads", "eps"}
LAYERS = ("attn_layer_idxs", "hyena_layer_idxs", "hcl_layer_idxs", "hcm_layer_idxs", "hcs_layer_idxs")
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(LAYERS, ()),
    **{f"{kind}_filter_{what}": None for kind in ("hcm", "hcs") for what in ("length", "groups")},
    "inner_mlp_size": None,
    "inner_size_multiple_of": 64,
    "model_parallel_size": 1,
    "proj_groups": 1,
    "rotary_emb_base": None,
    "qkv_proj_bias": True,
    "mha_out_proj_bias": True,
    "hyena_out_proj_bias": True,
    "mlp_activation": None,
    "evo2_style_activations": False,
    "use_flash_rmsnorm": False,
    "tie_embeddings": False,
}
ONLY = {
    **published_striped_filter.ONLY,
    "final_norm": True,
    "use_interpolated_rotary_pos_emb": False,
    "smeared_gqa": False,
}
WITHOUT_EFFECT = {
    "attn_block_dtype", "column_split", "compile", "depthwise_dtype", "ground_truth_activations_path",
    "hcl_filter_groups", "hyena_block_dtype", "inference_mode", "log_intermediate_values",
    "low_mem_mode", "make_vocab_size_divisible_by", "max_batch_size", "max_seqlen", "mlp_dtype", "mlp_init_method",
    "mlp_output_init_method", "model_name", "num_filters", "padding_idx", "params_dtype",
    "pipe_parallel_size", "prefill_style", "print_activations", "process_group", "rotary_emb_scaling_factor",
    "seqlen", "tokenizer_type", "use_flash_attn", "use_flash_depthwise", "use_flashfft",
    "use_fp8_input_projections", "use_hcl_kernel", "use_hcm_kernel", "use_hcs_kernel", "use_laughing_hyena",
    "vocab_file",
}  # fmt: skip
"""Options of precision, speed and start, which change nothing in what is computed."""


def essential(shapes: Shapes) -> dict[str, int]:
    """The tensors that `infer` looks at, and their numbers of axes."""
    names = {EMBEDDING: 2}
    for i, block in enumerate(_blocks(shapes) or [{}]):
        if QKV in block:
            inner = {QKV: 2}
        else:
            responses = {"filter.log_poles": 3, "filter.h": 3, "filter.poles": 4}
            response = next((name for name in responses if name in block), "filter.poles")
            inner = {"filter.short_filter_weight": 3, response: responses[response]}
        names |= {f"blocks.{i}.{name}": axes for name, axes in ({"mlp.l1.weight": 2} | inner).items()}
    return names


def infer(shapes: Shapes) -> dict[str, Any]:
    """The options of a published model that can be read off its tensors."""
    blocks, width = _blocks(shapes), shapes[EMBEDDING][1]
    kinds = [_layers_option(block) for block in blocks]
    found: dict[str, Any] = {name: [i for i, kind in enumerate(kinds) if kind == name] for name in LAYERS}
    found |= {
        "hidden_size": width,
        "vocab_size": shapes[EMBEDDING][0],
        "num_layers": len(blocks),
        "inner_mlp_size": blocks[0]["mlp.l1.weight"][0],
    }
    if HEAD not in shapes:
        found["tie_embeddings"] = True
    for kind, block in zip(kinds, blocks, strict=True):
        if kind == "attn_layer_idxs":
            found["proj_groups"] = 2 * width // max(1, block[QKV][0] - width)
            found["qkv_proj_bias"] = "inner_mha_cls.Wqkv.bias" in block
            found["mha_out_proj_bias"] = "inner_mha_cls.out_proj.bias" in block
            continue
        found["short_filter_length"] = block["filter.short_filter_weight"][2]
        found["short_filter_bias"] = "filter.short_filter_bias" in block
        if kind == "hyena_layer_idxs":
            filters, found["state_size"] = block["filter.poles"][:2]
            found["hyena_filter_groups"] = width // max(1, filters)
            continue
        found["qkv_proj_bias"] = "projections.bias" in block
        found["hyena_out_proj_bias"] = "out_filter_dense.bias" in block
        if kind == "hcl_layer_idxs":
            found["state_size"] = block["filter.log_poles"][1]
        else:
            name = kind.removesuffix("_layer_idxs")
            found[f"{name}_filter_groups"], _, found[f"{name}_filter_length"] = block["filter.h"]
    return found


def merge(config: Config, inferred: Config) -> tuple[dict[str, Any], list[str]]:
    """The published config completed by what was inferred, and where the two contradict each other."""
    given = dict(config)
    for name in LAYERS:  # the published lists name layers beyond the last one
        if name in given:
            given[name] = [i for i in given[name] if i < inferred["num_layers"]]
    return completed(given, inferred)


def build(config: Config, variant: str) -> LanguageModel:
    """Ours for a published model."""
    known = {*NEEDED, *DEFAULTS, *published_striped_filter.DEFAULTS, *ONLY, *WITHOUT_EFFECT}
    refuse_unknown(config, known, ONLY, "StripedHyena")
    if missing := sorted(name for name in NEEDED if config.get(name) is None):
        raise InputError(f"published config: {', '.join(missing)} missing; the tensors do not tell it")
    given = DEFAULTS | dict(config)
    layers, expand = range(given["num_layers"]), inner_size(given) / given["hidden_size"]
    activations = iter(_activations(given))
    backbone = Backbone(
        given["hidden_size"],
        n_layers=len(layers),
        mixers=[lambda _, i=i: _mixer(given, i) for i in layers],
        channel_mixer=lambda width: GatedMLP(width, expand=expand, activation=next(activations)),
        norm="rms" if given["use_flash_rmsnorm"] else "rms_outside",
    )
    for module in backbone.modules():
        if isinstance(module, RMSNormOutside | nn.RMSNorm):
            module.eps = float(given["eps"])
    return LanguageModel(given["vocab_size"], backbone, tied=given["tie_embeddings"])


def inner_size(config: Config) -> int:
    """The width of the gated MLP: given, or 8/3 of the model's, rounded up to a multiple."""
    multiple = config["inner_size_multiple_of"] * config["model_parallel_size"]
    return config["inner_mlp_size"] or -(-int(8 * config["hidden_size"] / 3) // multiple) * multiple


def _activations(config: Config) -> list[Activation]:
    """The nonlinearity in the gate of every layer."""
    offered: dict[str, Activation] = {"gelu": "gelu", "silu": "silu"}
    name = config["mlp_activation"] or ("gelu" if _second(config) else "silu")
    if name not in offered:
        raise InputError(f"published config: mlp_activation={name!r}; StripedHyena offers {list(offered)}")
    later: Activation = "identity" if config["evo2_style_activations"] else offered[name]
    return [later if i else offered[name] for i in range(config["num_layers"])]


def rules(model: LanguageModel, variant: str, config: Config) -> list[Rule]:
    """Where every tensor of a model comes from."""
    backbone, shape = model.backbone, tuple(model.embedding.weight.shape)
    assert isinstance(backbone, Backbone)
    found = [Rule("embedding.weight", EMBEDDING, shape), _scale("backbone.norm", "norm", backbone.d_model)]
    if model.head is not None:
        found.append(Rule("head.weight", HEAD, shape))
    for i, block in enumerate(backbone.blocks):
        found += [rule.within(f"backbone.blocks.{i}", f"blocks.{i}") for rule in block_rules(block, config)]
    return found


def block_rules(block: Block, config: Config) -> list[Rule]:
    """Where every tensor of a block comes from."""
    mixer, mlp = block.mixer, block.channel_mixer
    assert isinstance(mlp, GatedMLP)
    found = [_scale("norm", "pre_norm", mixer.d_model), _scale("channel_norm", "post_norm", mixer.d_model)]
    for ours, theirs in (("gate", "l1"), ("up", "l2"), ("down", "l3")):
        found += same(f"channel_mixer.{ours}", f"mlp.{theirs}", getattr(mlp, ours))
    if isinstance(mixer, StripedHyena):
        return found + [rule._replace(ours=f"mixer.{rule.ours}") for rule in filter_rules(mixer, config)]
    assert isinstance(mixer, Attention)
    found += same("mixer.qkv", "inner_mha_cls.Wqkv", mixer.qkv)
    return found + same("mixer.out", "inner_mha_cls.out_proj", mixer.out)


def tied(shapes: Shapes) -> dict[str, str]:
    """There are none: whether the output projection is the embedding is said by the config."""
    return {}


def ignored(name: str, config: Config) -> bool:
    """Whether no rule needs this tensor: angles of rotation, or the embedding again."""
    return name.endswith("rotary_emb.inv_freq") or (name == HEAD and config.get("tie_embeddings", False))


def _blocks(shapes: Shapes) -> list[dict[str, tuple[int, ...]]]:
    """For every block the shapes of its tensors."""
    found: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
            found.setdefault(int(match[1]), {})[match[2]] = shape
    return [found.get(i, {}) for i in range(len(found))]


def _layers_option(block: Shapes) -> str:
    """The option that lists blocks like this one."""
    if QKV in block:
        return "attn_layer_idxs"
    if "filter.h" in block:
        return "hcm_layer_idxs" if block["filter.h"][2] >= NEWEST_FIRST else "hcs_layer_idxs"
    return "hcl_layer_idxs" if "filter.log_poles" in block else "hyena_layer_idxs"


def _second(config: Config) -> bool:
    """Whether this is StripedHyena 2, which has other defaults."""
    return not config["hyena_layer_idxs"] and any(config[name] for name in LAYERS[2:])


def _mixer(config: Config, index: int) -> SequenceMixer:
    option = next((name for name in LAYERS if index in config[name]), None)
    if option is None:
        raise InputError(f"published config: layer {index} is in none of {', '.join(LAYERS)}")
    if option == "attn_layer_idxs":
        return _attention(config)
    if option == "hyena_layer_idxs":
        return build_filter(config, "complex")
    biases = {"bias": config["qkv_proj_bias"], "out_bias": config["hyena_out_proj_bias"]}
    if option == "hcl_layer_idxs":
        return build_filter({**config, "hyena_filter_groups": None}, "real", **biases)
    kind = option.removesuffix("_layer_idxs")
    grouped = {**config, "hyena_filter_groups": config[f"{kind}_filter_groups"]}
    return build_filter(grouped, "explicit", taps=config[f"{kind}_filter_length"], **biases)


def _attention(config: Config) -> Attention:
    heads, biases = config["num_attention_heads"], (config["qkv_proj_bias"], config["mha_out_proj_bias"])
    base = config["rotary_emb_base"] or (1e6 if _second(config) else 1e4)
    mixer = Attention(
        config["hidden_size"],
        n_heads=heads,
        n_kv_heads=heads // config["proj_groups"],
        rotary_base=float(base),
        bias=any(biases),
    )
    for linear, biased in zip((mixer.qkv, mixer.out), biases, strict=True):
        if not biased:
            linear.register_parameter("bias", None)
    return mixer


def _scale(ours: str, theirs: str, width: int) -> Rule:
    return Rule(f"{ours}.weight", f"{theirs}.scale", (width,))


LAYOUT = Layout(EMBEDDING, ("stripedhyena",), essential, infer, merge, build, rules, tied, ignored)
