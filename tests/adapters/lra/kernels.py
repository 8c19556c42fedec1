"""Linear, low-rank, synthetic and Fourier variants of attention.

The files do not say how wide the model is.  Nothing depends on it but the shapes of weights, which the test replaces:
ours is built as wide as all heads together.
"""

from typing import Any, cast

import torch
from torch import Tensor

from adapters import Declined, Published, Tensors
from adapters.lra import Table, merging, output_at_real_positions, projection, real_positions
from longreach.mixers import (
    FNet,
    LinearTransformer,
    Linformer,
    Nystromformer,
    Performer,
    PerformerOptions,
    Synthesizer,
    SynthesizerScores,
)
from longreach.mixers.heads import Heads

KERNELS = {
    "relu": "relu", "requ": "squared_relu", "shiftedelu": "elu", "gelu": "gelu", "exp": "exp", "sigmoid": "sigmoid",
    "tanh": "tanh", "cos": "cos", "sin": "sin", "identity": "identity",
}  # fmt: skip
"""Published names of kernel functions, without the j of their registration, and ours."""


def sizes(config: dict[str, Any]) -> dict[str, Any]:
    """What all attention classes are given."""
    heads = config["num_heads"]
    return {"n_heads": heads, "head_dim": config["qkv_features"] // heads, "bias": config.get("bias", False)}


def head_weights(theirs: Tensors, heads: Heads, *names: str) -> dict[str, Tensor]:
    """The projections, those into heads under the published `names`."""
    ours = {"heads.into.weight": projection(theirs, *names), "heads.out.weight": merging(theirs)}
    if heads.into.bias is not None:
        ours["heads.into.bias"] = torch.cat([theirs[f"{name}.bias"].flatten() for name in names])
        ours["heads.out.bias"] = theirs["out.bias"]
    return ours


def ignoring_padding(module: Any, tensors: Tensors) -> dict[str, Tensor]:
    """A `run` of code that has a padding mask and makes no use of it."""
    if "padding_mask_valid" in tensors:
        tensors["padding_mask_valid"]
    return {"output": module(tensors["input"])}


def linear_transformer(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """The published layer ignores masks, the causal one too."""
    mixer = LinearTransformer(config["qkv_features"], **sizes(config), causal=False)
    return Published(mixer, lambda theirs: head_weights(theirs, mixer.heads, "query", "key", "value"), ignoring_padding)


class SeesTheFuture(Performer):
    """With the published shift, the greatest level of the whole sequence; with a floor it leaks the future."""

    def _greatest(self, level: Tensor, before: Tensor) -> Tensor:
        return torch.maximum(level.amax(-1, keepdim=True), before[..., None]).expand_as(level)


def performer(config: dict[str, Any], kernel: str, directions: str, options: PerformerOptions) -> Published:
    """Attention by features; the file holds the random directions."""
    mixer = SeesTheFuture(
        config["qkv_features"],
        **sizes(config),
        causal=config.get("unidirectional", False),
        kernel=cast(Any, kernel),
        directions=cast(Any, directions),
        n_directions=None if directions == "none" else config.get("nb_features", 256),
        options=options,
    )

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = head_weights(theirs, mixer.heads, "query", "key", "value")
        if config.get("normalize_data", False):
            query_and_key = 2 * config["qkv_features"]
            scale = torch.ones_like(ours["heads.into.weight"][:, :1])
            scale[:query_and_key] = mixer.heads.head_dim**-0.25
            ours["heads.into.weight"] = scale * ours["heads.into.weight"]
        return ours if mixer.W is None else ours | {"W": torch.zeros_like(mixer.W)}

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        if directions == "none":
            return ignoring_padding(module, tensors)
        drawn = {"W": tensors["projection_matrix"]}
        return ignoring_padding(lambda x: torch.func.functional_call(module, drawn, (x,)), tensors)

    return Published(mixer, weights, run)


def softmax_performer(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Estimates of softmax; `redraw_features` only says where the directions in the file come from."""
    positive, normalise = config.get("nonnegative_features", True), config.get("renormalize_attention", True)
    if not positive and not normalise:
        return Declined(
            "without normalisation, trigonometric features are scaled by the longest query of the batch row"
        )
    stabiliser = config.get("numerical_stabilizer", 1e-6)
    unit = "orthogonal-unit" if config.get("ortho_scaling", 0) else "orthogonal"
    directions = unit if config.get("ortho_features", True) else "independent"
    options = PerformerOptions(stabiliser, stabiliser, normalise)
    return performer(config, "positive" if positive else "trigonometric", directions, options)


def generalized_performer(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """Kernels of their own; the published code never normalises the data, although a parameter says so."""
    types = {"deterministic": "none", "ortho": "orthogonal", "iid": "independent"}
    options = PerformerOptions(
        floor=config.get("kernel_epsilon", 1e-3),
        least_sum=config.get("numerical_stabilizer", 0.0),
        normalise=config.get("renormalize_attention", True),
    )
    kernel = KERNELS[config.get("kernel_fn", "relu").removeprefix("jax.nn.").removeprefix("jnp.").removeprefix("j")]
    return performer(config, kernel, types[config.get("features_type", "deterministic")], options)


def linformer(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """One projection for everything; padding is projected as well."""
    length, rank = config.get("max_len", 1000), config.get("low_rank_features", 16)
    mixer = Linformer(config["qkv_features"], max_length=length, rank=rank, **sizes(config))

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        return head_weights(theirs, mixer.heads, "query", "key", "value") | {"E": theirs["lr_kernel"][None]}

    return Published(mixer, weights, ignoring_padding)


class ScrambledSynthesizer(Synthesizer):
    """The published dense scores: (l, h) read as (h, l), so that most come from other positions and heads."""

    def dense(self, x: Tensor) -> Tensor:
        hidden = super().dense(x)
        return hidden.transpose(1, 2).reshape(hidden.shape)


def synthesizer(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """The padding mask has an effect only together with dot products."""
    mode, dot_product = config.get("synthesizer_mode", "factorized_random"), not config.get("ignore_dot_product", True)
    tables = {"factorized_random": "factorised", "random": "full", "": "none"}
    scores = SynthesizerScores(
        random=cast(Any, next(ours for name, ours in tables.items() if name in mode)),
        rank=config.get("k", 32),
        dense="dense" in mode,
        dot_product=dot_product,
    )
    mixer = ScrambledSynthesizer(
        config["qkv_features"],
        max_length=config.get("max_length", 512),
        scores=scores,
        causal=config.get("causal_mask", False),
        **sizes(config),
    )

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = head_weights(theirs, mixer.heads, *(["query", "key", "value"] if dot_product else ["value"]))
        if scores.random == "full":
            ours["table"] = theirs["random"]
        if scores.random == "factorised":
            ours |= {"rows": theirs["random1"], "columns": theirs["random2"]}
        if scores.dense:
            ours["dense_hidden.weight"] = projection(theirs, "dense_syn")
            ours["dense_scores.weight"] = theirs["dense_syn_len.kernel"].mT
            if mixer.dense_hidden.bias is not None:
                ours["dense_hidden.bias"] = theirs["dense_syn.bias"].flatten()
                ours["dense_scores.bias"] = theirs["dense_syn_len.bias"]
        return ours

    return Published(mixer, weights, output_at_real_positions if dot_product else ignoring_padding)


def fnet(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """The plain sums."""
    return Published(FNet(1, normalisation="none"), lambda theirs: {})


def nystromformer(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """What lies between the projections."""
    conv_width = config.get("conv_kernel")
    mixer = Nystromformer(
        config["head_dim"],
        n_heads=1,
        n_landmarks=config["num_landmarks"],
        n_iterations=config.get("pinv_iterations", 6),
        conv_width=conv_width,
    )

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        unused = {f"heads.{name}": value.detach() for name, value in mixer.heads.state_dict().items()}
        return unused if conv_width is None else unused | {"conv": theirs["conv.weight"]}

    def run(mixer: Any, tensors: Tensors) -> dict[str, Tensor]:
        query, key, value = (tensors[f"input_{name}"] for name in "qkv")
        return {"output": mixer.attend(query, key, value, real_positions(tensors))}

    return Published(mixer, weights, run)


TABLE: Table = {
    "FNet mixing sublayer": fnet,
    "Nystromformer": nystromformer,
    "LinearAttention": linear_transformer,
    "LinformerAttention": linformer,
    "SynthesizerAttention": synthesizer,
    "make_fast_softmax_attention": softmax_performer,
    "make_fast_generalized_attention": generalized_performer,
}
