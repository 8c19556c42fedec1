"""The systems of the papers at the size of the papers: two layers, each with the MLP of a Transformer behind it.

What is common is that of safari's configs/experiment/synthetics (github.com/HazyResearch/safari): MLPs of four times
the width, an embedding that is the output too.  Hyena's filters are those of its hyena-131k-30vs.yaml.  RWKV-4 has its
own blocks (github.com/BlinkDL/RWKV-LM).  What was found by measurement is said in docs/recall.md.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from longreach.errors import InputError

Config = dict[str, Any]
"""What a section of a configuration file holds."""
INIT_STD = 0.1
"""Standard deviation of embeddings and linear maps at the start.  The 0.02 of language models is meant for widths of
a thousand channels; models of 64 stay on the plateau of the loss many times longer with it."""


class Size(NamedTuple):
    """What a model has to be built for."""

    width: int
    layers: int
    positions: int
    """The longest sequence that it has to read."""


class System(NamedTuple):
    """A row of a table."""

    model: Callable[[Size], Config]
    """The configuration of the model."""
    lr: float
    """The learning rate that it is trained with unless another is asked for."""


def _of(name: str, arguments: Config) -> Config:
    return {"class_path": name, "init_args": arguments}


def _stack(size: Size, mixer: Config) -> Config:
    """A language model of blocks with this mixer."""
    backbone = {
        "d_model": size.width,
        "n_layers": size.layers,
        "mixers": [mixer],
        "channel_mixer": _of("MLP", {"expand": 4, "activation": "gelu_tanh"}),
    }
    return _of("LanguageModel", {"backbone": _of("Backbone", backbone), "init_std": INIT_STD})


def _attention(size: Size) -> Config:
    return _stack(size, _of("Attention", {"n_heads": 1}))


def _hyena(size: Size) -> Config:
    filters = {"width": 64, "embedding_dim": 5, "sine_frequency": 10.0, "features_lr": 0.0}
    return _stack(size, _of("Hyena", {"max_length": size.positions, "filter": filters}))


def _h3(size: Size) -> Config:
    return _stack(size, _of("H3", {"d_state": 64}))


def _gss(size: Size) -> Config:
    return _stack(size, _of("GSS", {}))


def _s4d(size: Size) -> Config:
    return _stack(size, _of("S4D", {"d_state": 64}))


def _rwkv(size: Size) -> Config:
    layers = {"d_model": size.width, "n_layers": size.layers, "version": 4}
    return _of("RWKVLanguageModel", {"backbone": _of("RWKV", layers)})


SYSTEMS: dict[str, System] = {
    "attention": System(_attention, 1e-3),
    "hyena": System(_hyena, 3e-3),
    "h3": System(_h3, 3e-3),
    "gss": System(_gss, 3e-3),
    "s4d": System(_s4d, 3e-3),
    "rwkv": System(_rwkv, 3e-3),
}


def system_of(name: str) -> System:
    """The system of that name; raises InputError if there is none."""
    if name not in SYSTEMS:
        raise InputError(f"there is no system {name!r}; choose from {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def model_config(name: str, size: Size) -> Config:
    """The `model` section of a configuration."""
    return system_of(name).model(size)
