"""How published language models of Hyena and H3 are stored (safari's simple_lm, H3, HyenaDNA and its standalone file).

They are pre-norm Transformers whose attention is replaced by Hyena or H3 in all layers, or in all but some:

    x + mixer(norm1 x), then x + fc2(gelu_tanh(fc1(norm2 x))); a last norm; the embedding again as output projection

HyenaDNA's classifier averages the features instead and has a linear head.

Published: HazyResearch/safari src/models/sequence/simple_lm.py, HazyResearch/hyena-dna standalone_hyenadna.py,
HazyResearch/H3 src/models/ssm_seq.py.
"""

import re
from typing import Any, get_args

from longreach.errors import InputError
from longreach.mixers.attention import Attention
from longreach.mixers.base import SequenceMixer
from longreach.mixers.h3 import H3
from longreach.mixers.hyena import Hyena
from longreach.models import published_h3, published_hyena
from longreach.models.backbone import Backbone
from longreach.models.channel_mixers import MLP
from longreach.models.classifier import Classifier
from longreach.models.language_model import LanguageModel
from longreach.models.learned_positions import LearnedPositions
from longreach.models.published_h3 import build_h3, h3_rules
from longreach.models.published_hyena import Variant, build_hyena, hyena_rules
from longreach.models.published_layout import Config, Layout, Rule, Shapes, refuse_unknown, same

EMBEDDING = "backbone.embeddings.word_embeddings.weight"
POSITIONS = "backbone.embeddings.position_embeddings.weight"
HEAD = "head.output_transform.weight"

DEFAULTS: dict[str, Any] = {
    "layer": {},
    "ssm_cfg": None,
    "attn_layer_idx": [],
    "attn_cfg": {},
    "max_position_embeddings": 0,
    "resid_dropout": 0.0,
    "embed_dropout": 0.1,
    "pad_vocab_size_multiple": 1,
    "use_head": False,
    "n_classes": None,
}
ONLY = {"identity_mlp": False, "layer_norm_epsilon": 1e-5, "fused_mlp_activation": "gelu_approx"}
WITHOUT_EFFECT = {
    "_name_", "initializer_cfg", "checkpoint_mlp", "checkpoint_mixer", "fused_mlp", "fused_dropout_add_ln",
    "residual_in_fp32", "return_hidden_state", "sequence_parallel", "process_group", "device", "dtype", "use_fast_path",
}  # fmt: skip
ATTENTION_ONLY = {
    "causal": True,
    "dwconv": False,
    "cross_attn": False,
    "rotary_emb_scale_base": 0,
    "softmax_scale": None,
}
ATTENTION_WITHOUT_EFFECT = {
    "use_flash_attn", "fused_bias_fc", "checkpointing", "return_residual", "layer_idx", "process_group",
}  # fmt: skip


def essential(shapes: Shapes) -> dict[str, int]:
    """The tensors that `infer` looks at, and their numbers of axes."""
    names = {EMBEDDING: 2}
    for i in range(max(1, _count(shapes))):
        layer = f"backbone.layers.{i}"
        names[f"{layer}.mlp.fc1.weight"] = 2
        if f"{layer}.mixer.Wqkv.weight" not in shapes:
            mixer = published_h3 if f"{layer}.mixer.{published_h3.MARK}" in shapes else published_hyena
            names |= {f"{layer}.mixer.{name}": axes for name, axes in mixer.ESSENTIAL.items()}
    return names


def infer(shapes: Shapes) -> dict[str, Any]:
    """The options of a published model that can be read off its tensors."""
    layers = [f"backbone.layers.{i}." for i in range(_count(shapes))]
    attention = [i for i, layer in enumerate(layers) if f"{layer}mixer.Wqkv.weight" in shapes]
    found = {
        "d_model": shapes[EMBEDDING][1],
        "vocab_size": shapes[EMBEDDING][0],
        "n_layer": len(layers),
        "d_inner": shapes[f"{layers[0]}mlp.fc1.weight"][0],
        "attn_layer_idx": attention,
        "max_position_embeddings": shapes.get(POSITIONS, (0,))[0],
        "use_head": HEAD in shapes,
        "n_classes": shapes.get(HEAD, (None,))[0],
        "layer": {},
    }
    for i, layer in enumerate(layers):
        if i not in attention:
            prefix = f"{layer}mixer."
            under = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
            if published_h3.MARK in under:
                del found["layer"]
                found["ssm_cfg"] = published_h3.infer(under)
            else:
                found["layer"] = published_hyena.infer(under)
            break
    return found


def merge(config: Config, inferred: Config) -> tuple[dict[str, Any], list[str]]:
    """The published config completed by what was inferred, and where the two contradict each other."""
    group = "ssm_cfg" if "ssm_cfg" in inferred else "layer"
    given, layer = dict(config), dict(config.get("ssm_cfg") or config.get("layer") or {})
    if "vocab_size" in given:
        given |= {"vocab_size": _padded(given), "pad_vocab_size_multiple": 1}
    if not inferred["use_head"]:
        given["n_classes"] = None
    told = [(name, given.get(name), known) for name, known in inferred.items() if name != group]
    told += [(f"{group}.{name}", layer.get(name), known) for name, known in inferred[group].items()]
    problems = [
        f"config: {name}={value!r}, but the tensors have {known!r}"
        for name, value, known in told
        if value is not None and value != known
    ]
    return {**given, "layer": {}, **inferred, group: {**layer, **inferred[group]}}, problems


def build(config: Config, variant: Variant) -> LanguageModel | Classifier:
    """Ours for a published model."""
    needed = {"d_model", "n_layer", "d_inner", "vocab_size"}
    refuse_unknown(config, needed | {*DEFAULTS, *ONLY, *WITHOUT_EFFECT}, ONLY, "a language model")
    given = DEFAULTS | dict(config)
    d_model, positions = given["d_model"], given["max_position_embeddings"]
    backbone = Backbone(
        d_model,
        n_layers=given["n_layer"],
        mixers=[lambda _, i=i: _mixer(given, i, variant) for i in range(given["n_layer"])],
        channel_mixer=lambda width: MLP(width, expand=given["d_inner"] / width, activation="gelu_tanh"),
        dropout=float(given["resid_dropout"]),
    )
    dropout = float(given["embed_dropout"])
    if positions:  # the published dropout comes after the positions
        backbone, dropout = LearnedPositions(backbone, length=positions, dropout=dropout), 0.0
    if given["use_head"]:
        return Classifier(_padded(given), backbone, n_classes=given["n_classes"], dropout=dropout)
    return LanguageModel(_padded(given), backbone, dropout=dropout)


def rules(model: LanguageModel | Classifier, variant: Variant, config: Config) -> list[Rule]:
    """Where every tensor of a model comes from."""
    backbone, where = model.backbone, "backbone"
    found = [Rule("embedding.weight", EMBEDDING, tuple(model.embedding.weight.shape))]
    if isinstance(model, Classifier):
        found += same("head.output", "head.output_transform", model.head.output)
    if isinstance(backbone, LearnedPositions):
        found.append(Rule("backbone.table", POSITIONS, tuple(backbone.table.shape)))
        backbone, where = backbone.inner, "backbone.inner"
    assert isinstance(backbone, Backbone)
    assert backbone.norm is not None
    found += same(f"{where}.norm", "backbone.ln_f", backbone.norm)
    for i, block in enumerate(backbone.blocks):
        ours, theirs = f"{where}.blocks.{i}", f"backbone.layers.{i}"
        assert isinstance(block.channel_mixer, MLP)
        assert block.channel_norm is not None
        found += same(f"{ours}.norm", f"{theirs}.norm1", block.norm)
        found += same(f"{ours}.channel_norm", f"{theirs}.norm2", block.channel_norm)
        found += same(f"{ours}.channel_mixer.up", f"{theirs}.mlp.fc1", block.channel_mixer.up)
        found += same(f"{ours}.channel_mixer.down", f"{theirs}.mlp.fc2", block.channel_mixer.down)
        found += [
            rule.within(f"{ours}.mixer", f"{theirs}.mixer") for rule in _mixer_rules(block.mixer, variant, config)
        ]
    return found


def tied(names: Config) -> dict[str, str]:
    """Published names of the same tensor -> the one that the rules read."""
    head = {"lm_head.weight": EMBEDDING} if "lm_head.weight" in names else {}
    return head | published_hyena.tied(names)


def ignored(name: str, config: Config) -> bool:
    """Whether no rule needs this tensor: computed from others, switched off by the config, or a cache of angles."""
    layer = config["layer"]
    return (
        name.endswith((".filter_fn.pos_emb.t", ".rotary_emb.inv_freq"))
        or (name.endswith(".filter_fn.modulation.deltas") and not layer.get("modulate", True))
        or (name.endswith(".filter_fn.bias") and not layer.get("bias", True))
    )


def _count(shapes: Shapes) -> int:
    """The number of layers."""
    return len({match[1] for name in shapes if (match := re.match(r"backbone\.layers\.(\d+)\.", name))})


def _padded(config: Config) -> int:
    """The number of rows of the embedding."""
    multiple = config.get("pad_vocab_size_multiple", 1)
    return -(-config["vocab_size"] // multiple) * multiple


def _mixer(config: Config, index: int, variant: Variant) -> SequenceMixer:
    if index not in (config["attn_layer_idx"] or []):
        if config["ssm_cfg"] is not None:
            return build_h3({"d_model": config["d_model"], **config["ssm_cfg"]})
        layer = {"d_model": config["d_model"], **config["layer"]}
        if "l_max" not in layer:
            raise InputError("published config: layer.l_max, the length of the filters, is missing")
        return build_hyena(layer, variant)
    attention = dict(config["attn_cfg"] or {})
    known = {"num_heads", "dropout", "rotary_emb_dim", *ATTENTION_ONLY, *ATTENTION_WITHOUT_EFFECT}
    refuse_unknown(attention, known, ATTENTION_ONLY, "attention")
    if "num_heads" not in attention:
        raise InputError("published config: attn_cfg.num_heads is missing; the tensors do not tell it")
    head_dim, rotary = config["d_model"] // attention["num_heads"], attention.get("rotary_emb_dim", 0)
    if rotary not in (0, head_dim):
        raise InputError(
            f"published config: attn_cfg.rotary_emb_dim={rotary} turns a part of heads of width {head_dim}"
        )
    return Attention(
        config["d_model"],
        n_heads=attention["num_heads"],
        position="rotary" if rotary else "none",
        dropout=float(attention.get("dropout", 0.0)),
        bias=True,
    )


def _mixer_rules(mixer: SequenceMixer, variant: Variant, config: Config) -> list[Rule]:
    if isinstance(mixer, H3):
        return h3_rules(mixer, config["ssm_cfg"])
    if isinstance(mixer, Hyena):
        return hyena_rules(mixer, variant)
    assert isinstance(mixer, Attention)
    return same("qkv", "Wqkv", mixer.qkv) + same("out", "out_proj", mixer.out)


LAYOUT = Layout(EMBEDDING, get_args(Variant), essential, infer, merge, build, rules, tied, ignored)
