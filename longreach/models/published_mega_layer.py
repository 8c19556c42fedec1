"""How published Mega layers are stored, and stacks of them (the fork of fairseq at facebookresearch/mega).

Every layer is a Mega mixer and x + fc2(act(fc1(norm x))); a stack in pre-norm has a last norm.

Published: fairseq/modules/moving_average_gated_attention.py, normalized_feedforward_network.py, sequence_norm.py.

Axes: r directions, d model width, n averages of a channel, a query and key width.
"""

from typing import Any, cast, get_args

from jaxtyping import Float
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers.mega import ACTIVATIONS as MEGA_ACTIVATIONS
from longreach.mixers.mega import Activation, Mega, MegaOptions
from longreach.mixers.norms import BatchNorm, Norm, ScaleNorm, make_norm
from longreach.models.backbone import Backbone, Block
from longreach.models.channel_mixers import ACTIVATIONS, MLP
from longreach.models.published_layout import Config, Rule, refuse_unknown, same
from longreach.ops.relative_attention import Weighting

NORMS: dict[str, Norm] = {
    "layernorm": "layer",
    "scalenorm": "scale",
    "rmsnorm": "rms",
    "batchnorm": "batch",
    "syncbatchnorm": "batch",
}
RENAMED = {"linear": "identity", "swish": "silu", "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh"}

DEFAULTS: dict[str, Any] = {
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "activation": "silu",
    "attention_activation": "softmax",
    "bidirectional": False,
    "chunk_size": -1,
    "truncation": None,
    "norm_type": "layernorm",
    "prenorm": True,
    "norm_affine": True,
    "feature_dropout": False,
    "rel_pos_bias": "simple",
    "max_positions": 1024,
}
CHOICES = {
    "norm_type": NORMS,
    "activation": {*MEGA_ACTIVATIONS, *RENAMED},
    "attention_activation": get_args(Weighting),
    "rel_pos_bias": ("simple", "rotary"),
}


def build_mega(config: Config) -> Mega:
    """Ours for a published layer: `embed_dim`, `zdim`, `hdim`, `ndim`, and the options in DEFAULTS."""
    given = _complete(config)
    if given["truncation"] == 0:
        raise InputError(
            "published config: truncation=0 leaves nothing of the moving average in training only; use None"
        )
    chunk_size = given["chunk_size"] if given["chunk_size"] > 0 else None
    limited = chunk_size is None and given["rel_pos_bias"] == "simple"
    return Mega(
        given["embed_dim"],
        d_value=given["hdim"],
        d_key=given["zdim"],
        d_state=given["ndim"],
        chunk_size=chunk_size,
        weighting=given["attention_activation"],
        position=given["rel_pos_bias"],
        max_length=given["max_positions"] if limited else None,
        causal=not given["bidirectional"],
        options=MegaOptions(
            activation=cast(Activation, RENAMED.get(given["activation"], given["activation"])),
            kernel_length=given["truncation"],
            norm=NORMS[given["norm_type"]] if given["prenorm"] else None,
            norm_affine=given["norm_affine"],
            dropout=float(given["dropout"]),
            attention_dropout=float(given["attention_dropout"]),
            value_dropout=float(given["hidden_dropout"]),
            feature_dropout=given["feature_dropout"],
        ),
    )


def _complete(config: Config) -> dict[str, Any]:
    """The options of a layer with their defaults, checked."""
    refuse_unknown(config, {"embed_dim", "zdim", "hdim", "ndim", *DEFAULTS}, {}, "a Mega layer")
    given = DEFAULTS | dict(config)
    for name, offered in CHOICES.items():
        if given[name] not in offered:
            raise InputError(f"published config: {name}={given[name]!r}; offered are {sorted(offered)}")
    return given


def build_backbone(
    layer: Config, *, n_layers: int, d_inner: int, activation_dropout: float = 0.0, final_affine: bool = True
) -> Backbone:
    """Ours for a stack of layers with the options `layer`; without the maps behind the mixers if `d_inner` is 0."""
    given = _complete(layer)
    width, kind, prenorm = given["embed_dim"], NORMS[given["norm_type"]], given["prenorm"]

    def feed_forward(d_model: int) -> nn.Module:
        if d_inner < 1:
            return nn.Identity()
        activation = RENAMED.get(given["activation"], given["activation"])
        if activation not in ACTIVATIONS:
            raise InputError(f"published config: activation={given['activation']!r}; MLP offers {sorted(ACTIVATIONS)}")
        inner = MLP(d_model, expand=d_inner / d_model, activation=cast(Any, activation), dropout=activation_dropout)
        return nn.Sequential(inner, nn.Dropout(float(given["dropout"])))

    backbone = Backbone(
        width,
        n_layers=n_layers,
        mixers=[lambda _: build_mega(layer)],
        channel_mixer=feed_forward,
        layout="split" if d_inner > 0 else "joint",
        norm=kind,
        norm_position="pre" if prenorm else "post",
    )
    if prenorm and not final_affine:
        backbone.norm = make_norm(kind, width, affine=False)
    return backbone


def mega_rules(mixer: Mega) -> list[Rule]:
    """Where every tensor of a mixer comes from."""
    directions, d_model, n = mixer.average.gamma.shape
    a = mixer.d_key

    def by_direction(tensor: Float[Tensor, "..."]) -> Tensor:
        return tensor.view(directions, d_model, n)

    rules = [
        Rule(f"average.{name}", f"move.{name}", (directions * d_model, n, 1), by_direction)
        for name in ("delta", "alpha", "beta")
    ]
    rules.append(Rule("average.gamma", "move.gamma", (directions * d_model, n), by_direction))
    rules.append(Rule("average.omega", "move.omega", (d_model,)))
    rules += (
        same("value", "v_proj", mixer.value) + same("base", "mx_proj", mixer.base) + same("out", "h_proj", mixer.out)
    )
    rules += [Rule("scale", "gamma", (2, a)), Rule("shift", "beta", (2, a))]
    if mixer.position == "simple":
        rules.append(Rule("bias", "rel_pos_bias.rel_pos_bias", tuple(mixer.bias.shape)))
    else:
        rules += [Rule("bias", f"rel_pos_bias.{name}", (1, a)) for name in ("alpha", "beta")]
    return rules if mixer.norm is None else rules + norm_rules("norm", "norm", mixer.norm)


def norm_rules(ours: str, theirs: str, norm: nn.Module) -> list[Rule]:
    """Where every tensor of a norm comes from."""
    rules = same(ours, f"{theirs}.norm", norm)
    if isinstance(norm, ScaleNorm):
        rules = [rule._replace(theirs=f"{theirs}.norm.scalar") for rule in rules]
    if isinstance(norm, BatchNorm):
        rules += [
            Rule(f"{ours}.{name}", f"{theirs}.norm.{name}", tuple(tensor.shape))
            for name, tensor in norm.named_buffers()
        ]
    return rules


def backbone_rules(backbone: Backbone) -> list[Rule]:
    """Where every tensor of a stack comes from; names of ours start with `blocks` or `norm`."""
    rules = [] if backbone.norm is None else norm_rules("norm", "final_norm", backbone.norm)
    for i, block in enumerate(backbone.blocks):
        rules += [rule.within(f"blocks.{i}", f"layers.{i}") for rule in _block_rules(block)]
    return rules


def _block_rules(block: Block) -> list[Rule]:
    rules = [rule.within("mixer", "mega_layer") for rule in mega_rules(cast(Mega, block.mixer))]
    rules += norm_rules("norm", "mega_layer.norm", block.norm)
    if block.channel_norm is not None:
        inner = cast(MLP, cast(nn.Sequential, block.channel_mixer)[0])
        rules += norm_rules("channel_norm", "nffn.norm", block.channel_norm)
        rules += same("channel_mixer.0.up", "nffn.fc1", inner.up) + same("channel_mixer.0.down", "nffn.fc2", inner.down)
    return rules
