"""How published RWKV models are stored (BlinkDL/RWKV-LM, .pth), versions 4 to 7.

The shares of ours are those of the present position; versions 6 and 7 store those of the position before, 1 - share.
Version 7 stores a value residual in the first layer too, which nothing reads.

Axes: d model width, h heads, n channels of a head, r rank.
"""

import re
from typing import Any

from torch import Tensor

from longreach.mixers.base import SequenceMixer
from longreach.mixers.rwkv4 import RWKV4
from longreach.mixers.rwkv5 import RWKV5
from longreach.mixers.rwkv6 import RWKV6
from longreach.mixers.rwkv7 import RWKV7
from longreach.mixers.rwkv_channel_mix import RWKVChannelMix
from longreach.models.published_layout import Config, Layout, Rule, Shapes, completed, refuse_unknown, same
from longreach.models.rwkv import RWKV, RWKVLanguageModel, RWKVOptions, ValueResidual

ROOT, EMBEDDING = "blocks.0.ln0.weight", "emb.weight"
OPTIONS = {
    "dim_ffn": "d_inner",
    "dim_att": "d_attention",
    "head_size": "head_dim",
    "head_size_divisor": "divisor",
    "D_MIX_LORA": "share_rank",
    "D_DECAY_LORA": "decay_rank",
    "D_AAA_LORA": "rate_rank",
    "D_GATE_LORA": "gate_rank",
    "D_MV_LORA": "value_rank",
}
"""Published name -> the field of RWKVOptions."""
NEEDED = {"version", "vocab_size", "n_embd", "n_layer"}
WITHOUT_EFFECT = {"ctx_len", "head_size_a", "grad_cp", "weight_decay"}


def essential(shapes: Shapes) -> dict[str, int]:
    """The tensors that `infer` looks at, and their numbers of axes."""
    names = {EMBEDDING: 2}
    for i in range(_count(shapes)):
        names[f"blocks.{i}.ffn.key.weight"] = 2
        if i or "blocks.0.ffnPre.key.weight" not in shapes:
            names[f"blocks.{i}.att.key.weight"] = 2
    optional = {"r_k": 2, "time_faaaa": 2, "time_maa_w2": 3, "time_decay_w1": 2, "w1": 2, "a1": 2, "g1": 2, "v1": 2}
    last = f"blocks.{_count(shapes) - 1}.att"
    return names | {f"{last}.{name}": axes for name, axes in optional.items() if f"{last}.{name}" in shapes}


def infer(shapes: Shapes) -> dict[str, Any]:
    """The options of a published model that can be read off its tensors."""
    last = f"blocks.{_count(shapes) - 1}.att."
    att = {name.removeprefix(last): shape for name, shape in shapes.items() if name.startswith(last)}
    version = 7 if "r_k" in att else 6 if "time_maa_x" in att else 5 if "time_faaaa" in att else 4
    found = {
        "version": version,
        "vocab_size": shapes[EMBEDDING][0],
        "n_embd": shapes[EMBEDDING][1],
        "n_layer": _count(shapes),
        "dim_ffn": shapes["blocks.0.ffn.key.weight"][0],
        "model_type": "RWKV-ffnPre" if "blocks.0.ffnPre.key.weight" in shapes else "RWKV",
    }
    sizes = {  # by version: option -> where its size stands
        5: {"dim_att": ("key.weight", 0), "head_size": ("time_faaaa", 1)},
        6: {"dim_att": ("key.weight", 0), "head_size": ("time_faaaa", 1), "D_MIX_LORA": ("time_maa_w2", 1),
            "D_DECAY_LORA": ("time_decay_w1", 1)},
        7: {"head_size": ("r_k", 1), "D_DECAY_LORA": ("w1", 1), "D_AAA_LORA": ("a1", 1), "D_GATE_LORA": ("g1", 1),
            "D_MV_LORA": ("v1", 1)},
    }  # fmt: skip
    for option, (name, axis) in sizes.get(version, {}).items():
        if name in att:
            found[option] = att[name][axis]
    return found


def build(config: Config, variant: str) -> RWKVLanguageModel:
    """Ours for a published model."""
    refuse_unknown(config, NEEDED | {"model_type", *OPTIONS, *WITHOUT_EFFECT}, {}, f"an RWKV model ({variant})")
    backbone = RWKV(
        config["n_embd"],
        n_layers=config["n_layer"],
        version=config["version"],
        channel_first=config.get("model_type", "RWKV") == "RWKV-ffnPre",
        options=RWKVOptions(**{ours: config[theirs] for theirs, ours in OPTIONS.items() if theirs in config}),
    )
    return RWKVLanguageModel(config["vocab_size"], backbone)


def rules(model: RWKVLanguageModel, variant: str, config: Config) -> list[Rule]:
    """Where every tensor of a model comes from."""
    backbone, shape = model.backbone, tuple(model.embedding.weight.shape)
    assert isinstance(backbone, RWKV)
    found = [Rule("embedding.weight", EMBEDDING, shape), Rule("head.weight", "head.weight", shape)]
    found += same("backbone.first_norm", "blocks.0.ln0", backbone.first_norm)
    found += same("backbone.norm", "ln_out", backbone.norm)
    for i, layer in enumerate(backbone.layers):
        ours, theirs = f"backbone.layers.{i}", f"blocks.{i}"
        found += same(f"{ours}.norm", f"{theirs}.ln1", layer.norm)
        found += same(f"{ours}.channel_norm", f"{theirs}.ln2", layer.channel_norm)
        channel_first = isinstance(layer.time, RWKVChannelMix)
        time = f"{theirs}.ffnPre" if channel_first else f"{theirs}.att"
        found += [rule.within(f"{ours}.time", time) for rule in mixer_rules(layer.time, backbone.version)]
        found += [
            rule.within(f"{ours}.channel", f"{theirs}.ffn") for rule in mixer_rules(layer.channel, backbone.version)
        ]
        if layer.value_residual is not None:
            found += [rule.within(f"{ours}.value_residual", time) for rule in _residual_rules(layer.value_residual)]
    return found


def mixer_rules(mixer: SequenceMixer, version: int) -> list[Rule]:
    """Where every tensor of a time or channel mixing of that version comes from."""
    d = mixer.d_model
    found = []
    for ours, theirs in (("key", "key"), ("value", "value"), ("receptance", "receptance"), ("gate", "gate"),
                         ("out", "output"), ("norm", "ln_x")):  # fmt: skip
        if (part := getattr(mixer, ours, None)) is not None:
            found += same(ours, theirs, part)
    if isinstance(mixer, RWKVChannelMix):
        names = {4: "time_mix", 5: "time_mix", 6: "time_maa", 7: "x"}[version]
        shares = ["key", "receptance"] if mixer.gated else ["key"]
        view = _flat if version < 6 else _rest
        return found + [Rule(f"share_{name}", f"{names}_{name[0]}", (1, 1, d), view) for name in shares]
    if isinstance(mixer, RWKV4 | RWKV5):
        shares = ["key", "value", "receptance", *(["gate"] if version == 5 else [])]
        found += [Rule(f"share_{name}", f"time_mix_{name[0]}", (1, 1, d), _flat) for name in shares]
        rest = {
            "time_decay": "time_decay",
            **({"bonus": "time_faaaa"} if version == 5 else {"time_first": "time_first"}),
        }
        return found + [Rule(o, t, tuple(getattr(mixer, o).shape)) for o, t in rest.items()]
    return found + (_rules_6(mixer) if isinstance(mixer, RWKV6) else _rules_7(mixer))


def _rules_6(mixer: RWKV6) -> list[Rule]:
    d, width, rank = mixer.d_model, len(mixer.time_decay), mixer.share_down.shape[2]
    same_name = {"decay_down": "time_decay_w1", "decay_up": "time_decay_w2", "bonus": "time_faaaa",
                 "share_up": "time_maa_w2"}  # fmt: skip
    return [
        Rule("share", "time_maa_x", (1, 1, d), _rest),
        *(Rule("shares", f"time_maa_{name}", (1, 1, d), _rest_row) for name in "wkvrg"),
        Rule("share_down", "time_maa_w1", (d, 5 * rank), lambda tensor: tensor.unflatten(1, (5, -1)).transpose(0, 1)),
        Rule("time_decay", "time_decay", (1, 1, width), _flat),
        *(Rule(ours, theirs, tuple(getattr(mixer, ours).shape)) for ours, theirs in same_name.items()),
    ]


def _rules_7(mixer: SequenceMixer) -> list[Rule]:
    assert isinstance(mixer, RWKV7)
    d = mixer.d_model
    vectors = {"decay": "w0", "rate": "a0", "removal": "k_k", "rewrite": "k_a"}
    matrices = {"decay_down": "w1", "decay_up": "w2", "rate_down": "a1", "rate_up": "a2", "gate_down": "g1",
                "gate_up": "g2", "bonus": "r_k"}  # fmt: skip
    return [
        *(Rule("shares", f"x_{name}", (1, 1, d), _rest_row) for name in "rwkvag"),
        *(Rule(ours, theirs, (1, 1, d), _flat) for ours, theirs in vectors.items()),
        *(Rule(ours, theirs, tuple(getattr(mixer, ours).shape)) for ours, theirs in matrices.items()),
    ]


def _residual_rules(residual: ValueResidual) -> list[Rule]:
    d, rank = residual.down.shape
    return [
        Rule("start", "v0", (1, 1, d), _flat),
        Rule("down", "v1", (d, rank)),
        Rule("up", "v2", (rank, d)),
    ]


def tied(shapes: Shapes) -> dict[str, str]:
    """Nothing is stored twice."""
    return {}


def ignored(name: str, config: Config) -> bool:
    """Whether no rule needs this tensor: what the published code never reads."""
    later_norm = re.fullmatch(r"blocks\.[1-9]\d*\.ln0\.(weight|bias)", name)
    return bool(later_norm) or (config["version"] == 7 and name in UNREAD)


UNREAD = {f"blocks.0.att.v{i}" for i in range(3)}
"""The value residual of the first layer."""


def _flat(tensor: Tensor) -> Tensor:
    return tensor.flatten()


def _rest(tensor: Tensor) -> Tensor:
    return 1 - tensor.flatten()


def _rest_row(tensor: Tensor) -> Tensor:
    return 1 - tensor.view(1, -1)


def _count(shapes: Shapes) -> int:
    """The number of layers."""
    return len({match[1] for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name))})


LAYOUT = Layout(ROOT, ("BlinkDL",), essential, infer, completed, build, rules, tied, ignored)
