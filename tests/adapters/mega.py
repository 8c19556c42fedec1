"""Mega as in github.com/facebookresearch/mega: the moving average, the layer, the language model, the LRA classifier.

    MultiHeadEMA                  fairseq/modules/exponential_moving_average.py      (length, batch, width)
    MovingAverageGatedAttention   fairseq/modules/moving_average_gated_attention.py  the layer, with its norm
    MegaDecoderNoCrossAttn        fairseq/models/mega_lm.py                          tokens -> logits
    MegaLRAEncoder                fairseq/models/lra/mega_lra_encoder.py             with the classifier behind it

In the published code truncation holds in the parallel view only: what was published of the recurrent one is compared
with a mixer without it.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters import Declined, Published, Tensors
from longreach.errors import InputError
from longreach.mixers.mega import Mega, MegaState
from longreach.mixers.moving_average import MovingAverage
from longreach.mixers.norms import apply_norm, make_norm
from longreach.models import Backbone, LanguageModel
from longreach.models.normalised_input import NormalisedInput
from longreach.models.published_layout import Rule, assemble
from longreach.models.published_mega import build, rules
from longreach.models.published_mega_layer import (
    NORMS,
    backbone_rules,
    build_backbone,
    build_mega,
    mega_rules,
    norm_rules,
)
from longreach.ops.chunk_attention import attend_in_chunks
from longreach.ops.key_value_cache import join


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published class and options."""
    published_class = metadata["source"].partition(".py:")[2].split(" ")[0]
    adapters = {
        "MultiHeadEMA": moving_average,
        "MovingAverageGatedAttention": layer,
        "MegaDecoderNoCrossAttn": language_model,
        "MegaLRAEncoder": classifier,
    }
    try:
        return adapters[published_class](config)
    except InputError as error:
        return Declined(str(error))


def complete(module: nn.Module, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """With what is not published: the statistics of a batch norm, which are not to be trained."""
    state = module.double().state_dict()
    assert all("running" in name or "num_batches" in name for name in set(state) - set(ours))
    return state | {name: t.detach().clone() if "running" in name else t for name, t in ours.items()}


def readable(rules: Iterable[Rule], theirs: Tensors) -> list[Rule]:
    """The rules without those for the statistics of a batch norm, where these are not published."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return [rule for rule in rules if rule.theirs in theirs or not rule.ours.endswith(statistics)]


def moving_average(config: dict[str, Any]) -> Published:
    """The moving average alone."""
    options = {"d_state": config.get("ndim", 2), "causal": not config.get("bidirectional", False)}
    width = config["embed_dim"]
    mixers = nn.ModuleDict(
        {
            "parallel": MovingAverage(width, kernel_length=config.get("truncation"), **options),
            "recurrent": MovingAverage(width, **options),
        }
    )

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        shape = mixers["parallel"].gamma.shape
        ours = {name: theirs[name].view(shape) for name in ("delta", "alpha", "beta", "gamma")}
        return {f"{view}.{name}": t for view in mixers for name, t in {**ours, "omega": theirs["omega"]}.items()}

    def run(mixers: Any, tensors: Tensors) -> dict[str, Tensor]:
        x = tensors["input"].transpose(0, 1)
        results = {"output": mixers["parallel"](x, real(tensors)).transpose(0, 1)}
        if "kernel" in tensors:
            results["kernel"] = mixers["parallel"].kernels(x.shape[1]).flatten(0, 1)
        if "step_output" in tensors:
            state, outputs, read = mixers["recurrent"].init_state(len(x)), [], 0
            for chunk in x.split(tensors["step_lengths"].tolist(), dim=1):
                y, state = mixers["recurrent"].prefill(chunk, state)
                outputs.append(y)
                read += chunk.shape[1]
                if f"state/{read}" in tensors:
                    results[f"state/{read}"] = state.averages
            results["step_output"] = torch.cat(outputs, dim=1).transpose(0, 1)
        return results

    return Published(mixers, weights, run)


def real(tensors: Tensors) -> Tensor | None:
    """The mask of what is no padding."""
    return ~tensors["padding_mask"].bool() if "padding_mask" in tensors else None


def steps(mixer: Mega, x: Tensor, lengths: list[int]) -> Iterable[tuple[Tensor, MegaState]]:
    """Outputs of successive chunks, and the states after them."""
    state = mixer.init_state(len(x))
    for chunk in x.split(lengths, dim=1):
        y, state = mixer.step(chunk[:, 0], state) if chunk.shape[1] == 1 else mixer.prefill(chunk, state)
        yield y.view_as(chunk), state


def published_state(state: MegaState) -> dict[str, Tensor]:
    """The state under its published names."""
    whole = join((*state.cache.blocks, state.cache.tail))
    kept = {"prev_key": whole.key[:, 0], "prev_value": whole.value[:, 0]} if whole.size else {}
    return {"prev_state": state.average.averages, **kept}


def layer(config: dict[str, Any]) -> Published:
    """The layer: mixer, residual connection and, in post-norm, the norm behind it."""
    config = dict(config)
    causal, training = config.pop("causal_mask", False), config.pop("training_mode", False)
    parallel = build_mega(config)
    if causal != parallel.causal:
        raise InputError("causal attention of bidirectional averages, or the reverse: neither recurrent nor two-sided")
    modules = nn.ModuleDict({"parallel": parallel})
    if causal:
        modules["recurrent"] = build_mega(config | {"truncation": None})
    if parallel.norm is None:
        affine = config.get("norm_affine", True)
        modules["norm"] = make_norm(NORMS[config.get("norm_type", "layernorm")], parallel.d_model, affine=affine)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        found = [
            rule._replace(ours=f"{view}.{rule.ours}")
            for view in modules
            if view != "norm"
            for rule in mega_rules(parallel)
        ]
        if "norm" in modules:
            found += norm_rules("norm", "norm", modules["norm"])
        return complete(modules, assemble(readable(found, theirs), theirs))

    def behind(modules: Any, y: Tensor, mask: Tensor | None) -> Tensor:
        return apply_norm(modules["norm"], y, mask) if "norm" in modules else y

    def run(modules: Any, tensors: Tensors) -> dict[str, Tensor]:
        modules.train(training)
        x, mask = tensors["input"].transpose(0, 1), real(tensors)
        mixer = modules["parallel"]
        results = {"output": behind(modules, x + mixer(x, mask), mask).transpose(0, 1)}
        if "step_output" in tensors:
            outputs, read = [], 0
            for y, state in steps(modules["recurrent"], x, tensors["step_lengths"].tolist()):
                outputs.append(y)
                read += y.shape[1]
                for name, value in published_state(state).items():
                    if f"state/{read}/{name}" in tensors:
                        results[f"state/{read}/{name}"] = value
            results["step_output"] = behind(modules, x + torch.cat(outputs, dim=1), None).transpose(0, 1)
        norm = mixer.norm or modules["norm"]
        for name in ("running_mean", "running_var"):
            if f"buffer_after/norm.norm.{name}" in tensors:
                results[f"buffer_after/norm.norm.{name}"] = getattr(norm, name).clone()
        if "attn_weights" in tensors:
            results["attn_weights"] = attention_weights(mixer, x, mask)
        return results

    return Published(modules, weights, run, unchecked={"attn_mask": "the causal mask"})


def attention_weights(mixer: Mega, x: Tensor, mask: Tensor | None) -> Tensor:
    """The weights (b, chunks, queries, keys): what the attention gives if every value points at its place."""
    size = min(mixer.chunk_size or x.shape[1], x.shape[1])
    normed = mixer._normalise(x, mask)
    query, key, _, _ = mixer._gates(x, normed, mixer.average(normed, mask))
    place = F.one_hot(torch.arange(x.shape[1]) % size, size).to(x.dtype).expand(len(x), -1, -1)
    return attend_in_chunks(query, key, place, mixer._rule(x.device), mask).unflatten(1, (-1, size))


def language_model(config: dict[str, Any]) -> Published:
    """The whole model."""
    model, padding = build(config, "fairseq"), config.get("padding_idx", 1)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        return assemble(rules(model, "fairseq", config), theirs)

    def run(model: LanguageModel, tensors: Tensors) -> dict[str, Tensor]:
        tokens = tensors["input_ids"]
        mask = tokens != padding
        results = {"output": model(tokens, None if mask.all() else mask)}
        if "hidden/0" in tensors:
            missing = tensors["hidden/0"].shape[1] - tokens.shape[1]  # up to a whole chunk
            mask = F.pad(mask, (0, missing))
            x, backbone = model._embed(F.pad(tokens, (0, missing))), model.backbone
            if isinstance(backbone, NormalisedInput):
                x, backbone = backbone.normalise(x, mask), backbone.inner
            x = x.masked_fill(~mask[..., None], 0.0)
            results |= hidden(backbone, x, None if mask.all() else mask)
        if "step_output" in tensors:
            outputs, state = [], model.init_state(len(tokens))
            for token in tokens.unbind(1):
                logits, state = model.step(token, state)
                outputs.append(logits)
            results["step_output"] = torch.stack(outputs, dim=1)
            for i, inner in enumerate(state.layers):
                for name, value in published_state(inner).items():
                    results[f"state/{tokens.shape[1]}/layer{i}/{name}"] = value
        return results

    tied = {"output_projection.weight": "embed_tokens.weight"} if model.head is None else {}
    return Published(model, weights, run, tied=tied)


def hidden(backbone: Backbone, x: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """What enters the first layer and what comes out of each."""
    results = {"hidden/0": x}
    for i, block in enumerate(backbone.blocks, 1):
        x, _ = block(x, lambda u, block=block: (block.mixer(u, mask), None), mask)
        results[f"hidden/{i}"] = x
    return results


class LRAModel(nn.Module):
    """Embedding, layers, the mean of all real features or the first one, and two linear maps with GELU between."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["embedding_dim"]
        self.pixels = config.get("embedding_type", "sparse") == "linear"
        self.embedding = nn.Linear(1, width) if self.pixels else nn.Embedding(config["vocab_size"], width)
        layer = {
            "embed_dim": width,
            "zdim": config["z_dim"],
            "hdim": config["hidden_dim"],
            "ndim": config["n_dim"],
            "bidirectional": True,
            "attention_activation": config.get("attention_activation", "softmax"),
            "norm_type": config.get("norm_type", "layernorm"),
            "prenorm": config.get("normalize_before", False),
            "chunk_size": config.get("chunk_size", -1),
            "max_positions": config.get("max_seq_len", 256),
        }
        layer |= {name: config[name] for name in ("truncation", "rel_pos_bias", "activation") if name in config}
        self.backbone = build_backbone(layer, n_layers=config["num_encoder_layers"], d_inner=config["ffn_hidden_dim"])
        norm = NORMS[layer["norm_type"]] if config.get("normalize_embedding", False) else None
        self.norm = None if norm is None else make_norm(norm, width)
        self.averages = config.get("sen_rep_type", "cls") == "mp"
        self.dense = nn.Linear(width, config["hidden_dim"])
        self.output = nn.Linear(config["hidden_dim"], config["num_classes"], bias=False)
        self.padding = config.get("padding_idx", 1)

    def forward(self, tokens: Tensor, padded: int, lengths: Tensor) -> dict[str, Tensor]:
        """`padded` positions are mixed, whatever they are; pixels have no padding."""
        mask = None
        if self.pixels:
            x = self.embedding(tokens[..., None])
        else:
            tokens = F.pad(tokens, (0, padded - tokens.shape[1]), value=self.padding)
            mask = None if (tokens != self.padding).all() else tokens != self.padding
            x = self.embedding(tokens)
        x = x if self.norm is None else apply_norm(self.norm, x, mask)
        x = x if mask is None else x.masked_fill(~mask[..., None], 0.0)
        results = hidden(self.backbone, x, mask)
        features = self.backbone._finish(results[f"hidden/{len(self.backbone.blocks)}"], mask)
        features = features if mask is None else features.masked_fill(~mask[..., None], 0.0)
        pooled = features.sum(1) / lengths[:, None] if self.averages else features[:, 0]
        return {**results, "sentence_rep": pooled, "output": self.output(F.gelu(self.dense(pooled)))}


def classifier(config: dict[str, Any]) -> Published:
    """The classifier of the Long Range Arena."""
    model, training = LRAModel(config), config.get("training_mode", False)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        encoder = [
            rule._replace(ours=f"backbone.{rule.ours}", theirs=f"encoder.{rule.theirs}")
            for rule in backbone_rules(model.backbone)
        ]
        if model.norm is not None:
            encoder += norm_rules("norm", "encoder.embed_norm", model.norm)
        ours = {
            **assemble(readable(encoder, theirs), theirs),
            "dense.weight": theirs["classifier.dense.weight"],
            "dense.bias": theirs["classifier.dense.bias"],
            "output.weight": theirs["classifier.proj.weight"],
        }
        if model.pixels:
            ours |= {
                "embedding.weight": theirs["encoder.embed_tokens.weight"][:, None],
                "embedding.bias": theirs["encoder.embed_tokens.bias"],
            }
        else:
            ours["embedding.weight"] = theirs["encoder.embed_tokens.embed.weight"]
        return complete(model, ours)

    def run(model: LRAModel, tensors: Tensors) -> dict[str, Tensor]:
        model.train(training)
        tokens = tensors["input"] if model.pixels else tensors["input_ids"]
        padded = tensors["hidden/0"].shape[1] if "hidden/0" in tensors else tokens.shape[1]
        results = model(tokens, padded, tensors["src_lengths"])
        return {name: value for name, value in results.items() if name in tensors}

    return Published(model, weights, run)
