"""Published checkpoints as models of ours.

    model = load_published("hyenadna-tiny-1k-seqlen", variant="standalone")        a folder, or a file of weights
    longreach convert hyenadna-tiny-1k-seqlen runs/dna --variant standalone        to evaluate and generate with

What a checkpoint holds is compared with what a model needs before anything is loaded; everything that is missing, left
over, of another shape, or at odds with the config is listed in one InputError.  Files are never unpickled.
"""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.models import (
    published_bigs,
    published_h3_release,
    published_mega,
    published_rwkv,
    published_s4,
    published_safari,
    published_striped_hyena,
)
from longreach.models.language_model import LanguageModel
from longreach.models.published_layout import Layout, Rule, Shapes, assemble

DAMAGE = (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError)
"""What the readers of torch and safetensors raise for a file that is broken or something else."""


LAYOUTS: dict[str, Layout] = {
    "bigs": published_bigs.FLAX,
    "bigs-torch": published_bigs.TORCH,
    "mega": published_mega.LAYOUT,
    "rwkv": published_rwkv.LAYOUT,
    "s4": published_s4.LAYOUT,
    "s4d": published_s4.MINIMAL,
    "safari": published_safari.LAYOUT,
    "stripedhyena": published_striped_hyena.LAYOUT,
    **published_h3_release.LAYOUTS,
}
"""The ways of storing models that are known, by name."""


class PublishedCheckpoint(NamedTuple):
    """A published model, and what it takes to build it again."""

    model: Any
    """Ours, with the published weights."""
    layout: str
    """Its name in LAYOUTS."""
    variant: str
    config: dict[str, Any]
    """The complete published config."""


class PublishedLanguageModel(LanguageModel):
    """The language model of a published config, with weights to be loaded: how a configuration file names one.

    Args:
        vocab_size: number of tokens, as in the config.
        layout: how it is stored; a name in LAYOUTS.
        variant: whose code wrote it.
        config: the complete published config.
    """

    def __init__(self, vocab_size: int, *, layout: str, variant: str, config: dict[str, Any]) -> None:
        if layout not in LAYOUTS:
            raise InputError(f"layout={layout!r}: the known ones are {list(LAYOUTS)}")
        built = LAYOUTS[layout].build(config, variant)
        if not isinstance(built, LanguageModel) or built.vocab_size != vocab_size:
            raise InputError(f"the published config is not that of a language model of {vocab_size} tokens")
        super().__init__(
            vocab_size,
            built.backbone,
            tied=built.head is None,
            dropout=built.dropout.p,
            embedding_scale=built.embedding_scale,
        )


def load_published(path: str | Path, *, config: Mapping[str, Any] | None = None, variant: str | None = None) -> Any:
    """The model of `read_published`: a LanguageModel, or whatever else was published."""
    return read_published(path, config=config, variant=variant).model


def read_published(
    path: str | Path, *, config: Mapping[str, Any] | None = None, variant: str | None = None
) -> PublishedCheckpoint:
    """A published model, in float32 or wider, on the CPU.

    Args:
        path: a .safetensors file, a .pt, .pth, .bin or .ckpt file of tensors, or a folder with exactly one of them.
        config: the published config, under its published names, as far as shapes do not tell it: activation, shift,
            number of attention heads, ...  By default `config.json` next to the weights if there is one.
        variant: whose code wrote the checkpoint, where that makes a difference which no tensor tells.  For Hyena:
            `safari` (also hyena-dna's src) or `standalone`; they differ in the default of `shift`, and from order 3 on
            in the order of the filters.
    Raises:
        InputError: the file cannot be read, or does not hold exactly the tensors of such a model.
    """
    file = _weights_file(Path(path))
    tensors = read_tensors(file)
    name, tensors = _recognise(tensors, file)
    layout = LAYOUTS[name]
    variant = variant or layout.variants[0]
    if variant not in layout.variants:
        raise InputError(f"variant={variant!r}: the published variants of this model are {layout.variants}")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _refuse(file, _unreadable(layout.essential(shapes), shapes))
    merged, problems = layout.merge(_config(file) if config is None else config, layout.infer(shapes))
    _refuse(file, problems)
    model = layout.build(merged, variant)
    rules = layout.rules(model, variant, merged)
    _refuse(file, _differences(rules, tensors, layout.tied(shapes), lambda name: layout.ignored(name, merged)))
    _fill(model, assemble(rules, tensors))
    return PublishedCheckpoint(model, name, variant, merged)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file, also those under `state_dict` or `model`; nothing but tensors is unpickled."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    except DAMAGE as error:
        raise InputError(
            f"{file} holds no tensors that can be read safely ({_first_line(error)}); if it is a checkpoint "
            "with other objects in it, save its state dict alone, best as .safetensors"
        ) from error
    for name in ("state_dict", "model", "module"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{file} does not hold a state dict, which maps names to tensors")
    return content


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    suffixes = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
    files = sorted(file for file in path.iterdir() if file.suffix in suffixes)
    safe = [file for file in files if file.suffix == ".safetensors"]
    if len(safe or files) != 1:
        names = [file.name for file in safe or files]
        raise InputError(f"{path} holds {len(names)} files of weights, not one: {names}; name the file")
    return (safe or files)[0]


def _config(file: Path) -> dict[str, Any]:
    path = file.with_name("config.json")
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no JSON file ({error}); mend it, or give config= instead") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no JSON object; mend it, or give config= instead")
    return config


def _recognise(tensors: dict[str, Tensor], file: Path) -> tuple[str, dict[str, Tensor]]:
    """The name of the layout of a file, and its tensors without the prefix that wrappers put before all names."""
    for layout_name, layout in LAYOUTS.items():
        for name in tensors:
            if name == layout.root or name.endswith(f".{layout.root}"):
                prefix = name.removesuffix(layout.root)
                return layout_name, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    roots = " or ".join(layout.root for layout in LAYOUTS.values())
    raise InputError(f"{file} is no published model that is known here; one has a tensor {roots}")


def _unreadable(essential: dict[str, int], shapes: Shapes) -> list[str]:
    missing = [f"missing: {name}" for name in essential if name not in shapes]
    return missing + [
        f"shape: {name} is {shapes[name]}, where {axes} axes are needed"
        for name, axes in essential.items()
        if len(shapes.get(name, range(axes))) != axes
    ]


def _differences(
    rules: list[Rule], tensors: dict[str, Tensor], tied: dict[str, str], ignored: Callable[[str], bool]
) -> list[str]:
    """What stands between the tensors of a file and those that a model needs."""
    found = []
    for rule in rules:
        tensor = tensors.get(rule.theirs)
        if tensor is None:
            found.append(f"missing: {rule.theirs}")
        elif tuple(tensor.shape) != rule.shape:
            found.append(f"shape: {rule.theirs} is {tuple(tensor.shape)}, the others call for {rule.shape}")
    for name, other in tied.items():
        if other in tensors and not torch.equal(tensors[name], tensors[other]):
            found.append(f"not tied: {name} differs from {other}, which should be the same tensor")
    used = {name for rule in rules for name in (rule.theirs, *rule.also)} | set(tied)
    return found + [f"unknown: {name}" for name in tensors if name not in used and not ignored(name)]


def _refuse(file: Path, problems: list[str]) -> None:
    if problems:
        listed = "\n  ".join(problems)
        raise InputError(f"{file} was not loaded; compare its config and its variant with what is listed:\n  {listed}")


def _fill(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put `weights` in place of all that the model holds; float64 stays what it is."""
    if any(tensor.dtype == torch.float64 for tensor in weights.values()):
        model.double()
    model.load_state_dict(weights, strict=True)
