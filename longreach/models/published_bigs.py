"""How published BiGS models are stored (jxiw/BiGS): masked language models of the flax code, and of its port to torch.

    LayerNorm(words + types + positions), layers, and a head that is transform, GELU, norm, embedding again, bias

The flax code stores linear maps as (in, out) and approximates the GELU of its layers by tanh; the port stores (out, in)
and does not approximate.  The head's GELU is exact in both.

Axes: d model width, v vocabulary.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from longreach.mixers.bigs import BiGS
from longreach.models.backbone import Backbone
from longreach.models.learned_positions import LearnedPositions
from longreach.models.masked_language_model import MaskedLanguageModel
from longreach.models.normalised_input import NormalisedInput
from longreach.models.published_layout import Config, Layout, Rule, Shapes, completed, refuse_unknown

NEEDED = {"vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_ssm", "max_position_embeddings"}
ONLY = {"hidden_act": "gelu", "tie_word_embeddings": True, "decode": False}
DEFAULTS = {"type_vocab_size": 2, "pre_norm": False, "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1}
WITHOUT_EFFECT = {
    "scaling", "return_dict", "use_pykeops_kernel", "initializer_range", "pooler_type", "classifier_dropout",
    "pad_token_id", "model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "_name_or_path", "position_embedding_type",
}  # fmt: skip
LAYERS = {
    "wide": "dv", "enter_forward": "du_forward", "enter_backward": "du_backward", "leave_forward": "duc_forward",
    "leave_backward": "duc_backward", "gate": "dol", "out": "do",
}  # fmt: skip
"""Our name of a linear map -> the published one."""
SYSTEM = {"log_dt": "log_step", "A_real": "A_re", "A_imag": "A_im", "C": "C", "D": "D"}
"""Our name of a parameter of both directions -> the published one of each."""


class Names(NamedTuple):
    """What the two codes call the same things."""

    backbone: str
    embedding: str
    linear: str
    norm: str
    kernel: str
    """What stands before the parameters of a kernel, other than D."""


FLAX_NAMES = Names("s4_bert", "embedding", "kernel", "scale", "")
TORCH_NAMES = Names("bigs", "weight", "weight", "weight", "kernel.")


def layer_rules(mixer: BiGS, names: Names) -> list[Rule]:
    """Where every tensor of a layer comes from, apart from its norm."""
    found = []
    for ours, theirs in LAYERS.items():
        found += _linear(ours, theirs, getattr(mixer, ours), names)
    for ours, theirs in SYSTEM.items():
        shape = (1,) if ours in ("log_dt", "D") else tuple(getattr(mixer, ours).shape[1:])
        where = theirs if ours == "D" else f"{names.kernel}{theirs}"
        view = _as_row if ours in ("A_real", "A_imag", "C") else _same
        found += [Rule(ours, f"{direction}.{where}", shape, view) for direction in ("fs4", "bs4")]
    return found


def _as_row(tensor: Tensor) -> Tensor:
    return tensor[None]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def norm_rules(ours: str, theirs: str, norm: nn.LayerNorm, names: Names) -> list[Rule]:
    """Where a norm comes from."""
    shape = tuple(norm.weight.shape)
    return [Rule(f"{ours}.weight", f"{theirs}.{names.norm}", shape), Rule(f"{ours}.bias", f"{theirs}.bias", shape)]


def _linear(ours: str, theirs: str, linear: nn.Linear, names: Names) -> list[Rule]:
    shape = tuple(linear.weight.shape)
    transposed = names.linear == "kernel"
    weight = Rule(f"{ours}.weight", f"{theirs}.{names.linear}", shape)
    if transposed:
        weight = weight._replace(shape=shape[::-1], view=Tensor.t)
    return [weight, Rule(f"{ours}.bias", f"{theirs}.bias", shape[:1])]


def build(config: Config, variant: str) -> MaskedLanguageModel:
    """Ours for a published model; `variant` tells which GELU its layers have."""
    refuse_unknown(config, NEEDED | {*DEFAULTS, *ONLY, *WITHOUT_EFFECT}, ONLY, f"BiGS ({variant})")
    given = DEFAULTS | dict(config)
    backbone = Backbone(
        given["hidden_size"],
        n_layers=given["num_hidden_layers"],
        mixers=[lambda width: build_layer(given, variant)],
        channel_mixer=nn.Identity,
        layout="joint",
        norm_position="pre" if given["pre_norm"] or variant == "torch" else "post",
        final_norm=False,
    )
    positions = LearnedPositions(
        NormalisedInput(backbone, dropout=float(given["hidden_dropout_prob"])), length=given["max_position_embeddings"]
    )
    model = MaskedLanguageModel(given["vocab_size"], positions, n_types=given["type_vocab_size"])
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = given["layer_norm_eps"]
    return model


def build_layer(config: Config, variant: str) -> BiGS:
    """Our mixer for a published layer; where it starts does not matter."""
    return BiGS(
        config["hidden_size"],
        d_inner=config["intermediate_size"],
        d_state=config["num_ssm"],
        init="lin",
        activation="gelu_tanh" if variant == "flax" else "gelu",
    )


def _rules(names: Names, model: MaskedLanguageModel, variant: str, config: Config) -> list[Rule]:
    """Where every tensor of a model comes from."""
    positions = model.backbone
    assert isinstance(positions, LearnedPositions)
    normalised = positions.inner
    assert isinstance(normalised, NormalisedInput)
    assert isinstance(normalised.inner, Backbone)
    assert isinstance(normalised.norm, nn.LayerNorm)
    assert model.types is not None
    embeddings, head = f"{names.backbone}.embeddings", "cls.predictions"
    tables = {
        "embedding.weight": ("word", model.embedding.weight),
        "types.weight": ("token_type", model.types.weight),
        "backbone.table": ("position", positions.table),
    }
    found = [
        Rule(ours, f"{embeddings}.{theirs}_embeddings.{names.embedding}", tuple(table.shape))
        for ours, (theirs, table) in tables.items()
    ]
    found += norm_rules("backbone.inner.norm", f"{embeddings}.LayerNorm", normalised.norm, names)
    for i, block in enumerate(normalised.inner.blocks):
        ours, theirs = f"backbone.inner.inner.blocks.{i}", f"{names.backbone}.encoder.layer.{i}"
        assert isinstance(block.mixer, BiGS)
        assert isinstance(block.norm, nn.LayerNorm)
        found += norm_rules(f"{ours}.norm", f"{theirs}.LayerNorm", block.norm, names)
        found += [rule.within(f"{ours}.mixer", theirs) for rule in layer_rules(block.mixer, names)]
    found += _linear("transform", f"{head}.transform.dense", model.transform, names)
    found += norm_rules("norm", f"{head}.transform.LayerNorm", model.norm, names)
    return [*found, Rule("bias", f"{head}.bias", tuple(model.bias.shape))]


def _essential(names: Names, shapes: Shapes) -> dict[str, int]:
    embeddings, first = f"{names.backbone}.embeddings", f"{names.backbone}.encoder.layer.0"
    tables = {f"{embeddings}.{name}_embeddings.{names.embedding}": 2 for name in ("word", "position", "token_type")}
    return {**tables, f"{first}.dv.bias": 1, f"{first}.fs4.{names.kernel}A_re": 1}


def _infer(names: Names, shapes: Shapes) -> dict[str, Any]:
    embeddings, first = f"{names.backbone}.embeddings", f"{names.backbone}.encoder.layer.0"
    vocab_size, width = shapes[f"{embeddings}.word_embeddings.{names.embedding}"]
    pattern = re.compile(rf"{names.backbone}\.encoder\.layer\.(\d+)\.")
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "max_position_embeddings": shapes[f"{embeddings}.position_embeddings.{names.embedding}"][0],
        "type_vocab_size": shapes[f"{embeddings}.token_type_embeddings.{names.embedding}"][0],
        "num_hidden_layers": len({match[1] for name in shapes if (match := pattern.match(name))}),
        "intermediate_size": shapes[f"{first}.dv.bias"][0],
        "num_ssm": shapes[f"{first}.fs4.{names.kernel}A_re"][0],
    }


def _tied(names: Names, shapes: Shapes) -> dict[str, str]:
    again = {
        "cls.predictions.decoder.weight": f"{names.backbone}.embeddings.word_embeddings.{names.embedding}",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    return {name: other for name, other in again.items() if name in shapes}


def ignored(name: str, config: Config) -> bool:
    """Whether no rule needs this tensor: the head of another task, or the numbers 0, 1, 2, ..."""
    return ".pooler." in name or name.endswith(".embeddings.position_ids")


def _layout(names: Names, variant: str) -> Layout:
    root = f"cls.predictions.transform.dense.{names.linear}"
    parts: list[Callable[..., Any]] = [partial(part, names) for part in (_essential, _infer, _rules, _tied)]
    essential, infer, rules, tied = parts
    return Layout(root, (variant,), essential, infer, completed, build, rules, tied, ignored)


FLAX, TORCH = _layout(FLAX_NAMES, "flax"), _layout(TORCH_NAMES, "torch")
