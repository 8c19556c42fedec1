"""Long Range Arena's encoder of tokens and its model of two documents, put together from parts of ours.

    x = E[tokens] + positions, behind a learned vector in the first place if a classifier reads that
    h = norm(blocks(x))                                  pre-norm Transformer blocks, token 0 is padding
    one document     relu(pool(h) W + b) V + c
    two documents    the same with one more layer on (p, q) or (p, q, p q, p - q), p = pool(h_1), q = pool(h_2)

Everything is computed in float64, where the published code has float32.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapters import Published, Tensors
from adapters.lra import Table, merging, projection
from longreach.mixers import Attention
from longreach.models import MLP, Backbone

POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "CLS": lambda h: h[:, 0],
    "MEAN": lambda h: h.mean(1),
    "SUM": lambda h: h.sum(1),
    "FLATTEN": lambda h: h.flatten(1),
}


class Encoder(nn.Module):
    """Tokens to features."""

    def __init__(self, config: dict[str, Any], with_class: bool) -> None:
        super().__init__()
        width, heads = config["emb_dim"], config["num_heads"]
        self.embedding = nn.Embedding(config["vocab_size"], width)
        self.class_vector = nn.Parameter(torch.zeros(width)) if with_class else None
        self.positions = nn.Parameter(torch.zeros(config["max_len"] + with_class, width))
        self.backbone = Backbone(
            width,
            n_layers=config["num_layers"],
            mixers=[
                lambda d: Attention(
                    d, n_heads=heads, head_dim=config["qkv_dim"] // heads, position="none", causal=False
                )
            ],
            channel_mixer=lambda d: MLP(d, expand=config["mlp_dim"] / d, activation="gelu_tanh"),
        )
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6

    def forward(self, tokens: Tensor) -> Tensor:
        """Features (b, l, d)."""
        x, mask = self.embedding(tokens), tokens > 0
        if self.class_vector is not None:
            x = torch.cat([self.class_vector.expand(len(x), 1, -1), x], dim=1)
            mask = torch.cat([mask[:, :1], mask], dim=1)
        return self.backbone(x + self.positions[: x.shape[1]], mask)


def sinusoids(length: int, width: int) -> Tensor:
    """Sines and cosines of positions, by turns, rounded to float32 as published."""
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10_000.0) / width))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float().double()


class Doubles(Mapping[str, Tensor]):
    """Published tensors in float64, without the beginning of their names."""

    def __init__(self, theirs: Tensors, prefix: str = "") -> None:
        self.theirs, self.prefix = theirs, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self.theirs[self.prefix + name].double()

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self.prefix) for name in self.theirs if name.startswith(self.prefix))

    def __len__(self) -> int:
        return len(list(iter(self)))


def encoder_weights(theirs: Tensors, config: dict[str, Any], with_class: bool) -> dict[str, Tensor]:
    """The state of an Encoder."""
    ours = {
        "embedding.weight": theirs["Embed_0.embedding"],
        "positions": theirs["posembed_input.pos_embedding"][0]
        if config.get("learn_pos_emb", False)
        else sinusoids(config["max_len"] + with_class, config["emb_dim"]),
        "backbone.norm.weight": theirs["encoder_norm.scale"],
        "backbone.norm.bias": theirs["encoder_norm.bias"],
    }
    if with_class:
        ours["class_vector"] = theirs["cls"].flatten()
    for layer in range(config["num_layers"]):
        source = "encoderblock" if config.get("tied_weights", False) else f"encoderblock_{layer}"
        attention, block = f"{source}.MultiHeadDotProductAttention_1", f"backbone.blocks.{layer}"
        names = (f"{attention}.{name}" for name in ("query", "key", "value"))
        ours[f"{block}.mixer.qkv.weight"] = projection(theirs, *names)
        ours[f"{block}.mixer.out.weight"] = merging(theirs, f"{attention}.out")
        for norm, number in (("norm", 0), ("channel_norm", 2)):
            ours[f"{block}.{norm}.weight"] = theirs[f"{source}.LayerNorm_{number}.scale"]
            ours[f"{block}.{norm}.bias"] = theirs[f"{source}.LayerNorm_{number}.bias"]
        for linear, number in (("up", 0), ("down", 1)):
            ours |= dense(theirs, f"{source}.MlpBlock_3.Dense_{number}", f"{block}.channel_mixer.{linear}")
    return ours


def dense(theirs: Tensors, source: str, name: str) -> dict[str, Tensor]:
    """The state of one linear map."""
    return {f"{name}.weight": theirs[f"{source}.kernel"].mT, f"{name}.bias": theirs[f"{source}.bias"]}


def one_document(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """TransformerEncoder, with or without its classifier."""
    pool = config.get("classifier_pool", "CLS")
    layers = ["mlp", "logits"] if config.get("classifier", False) else []
    with_class = bool(layers) and pool == "CLS"

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        hidden = module["encoder"](tensors["input_ids"])
        return {"output": classify(module, layers, POOLS[pool](hidden)) if layers else hidden}

    return assembled(config, layers, with_class, "", run)


def two_documents(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """TransformerDualEncoder, whose encoder has no vector of its own to classify by."""
    pool, layers = POOLS[config.get("classifier_pool", "CLS")], ["mlp", "mlp2", "logits"]

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        p, q = (pool(module["encoder"](tensors[name])) for name in ("input_ids1", "input_ids2"))
        joined = [p, q, p * q, p - q] if config.get("interaction") == "NLI" else [p, q]
        return {"output": classify(module, layers, torch.cat(joined, dim=1))}

    return assembled(config, layers, False, "encoder.", run)


def classify(module: Any, layers: list[str], features: Tensor) -> Tensor:
    """The linear maps one after the other, with relu between them."""
    *hidden, last = layers
    for name in hidden:
        features = module[name](features).relu()
    return module[last](features)


def assembled(
    config: dict[str, Any], layers: list[str], with_class: bool, prefix: str, run: Callable[[Any, Tensors], Any]
) -> Published:
    """An encoder whose published names begin with `prefix`, and linear maps of any size."""
    module = nn.ModuleDict({"encoder": Encoder(config, with_class)} | {name: nn.Linear(1, 1) for name in layers})

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = encoder_weights(Doubles(theirs, prefix), config, with_class)
        ours = {f"encoder.{name}": value for name, value in ours.items()}
        for name in layers:
            ours |= dense(Doubles(theirs), name, name)
        return ours

    return Published(module, weights, run)


TABLE: Table = {"TransformerEncoder": one_document, "TransformerDualEncoder": two_documents}
