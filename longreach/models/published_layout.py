"""How a published model is stored: one rule for each of our tensors, and how to read the rest off the shapes.

A module `published_<system>` describes one way of storing models as its `LAYOUT`, by which longreach.models.published
reads files.  Rules are differentiable, so that the tests compare gradients through them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from longreach.errors import InputError

Config = Mapping[str, Any]
"""The options of a published model under their published names."""
Shapes = Mapping[str, tuple[int, ...]]
"""Published name of a tensor -> its shape."""


class Rule(NamedTuple):
    """Where one of our tensors comes from, or a part of it: several rules for one are joined along the first axis."""

    ours: str
    theirs: str
    shape: tuple[int, ...]
    """Its shape in the published file."""
    view: Callable[..., Tensor] = lambda tensor: tensor
    """Published -> ours, differentiable."""
    also: tuple[str, ...] = ()
    """Further published tensors that `view` takes."""

    def within(self, ours: str, theirs: str) -> "Rule":
        """The rule for the same tensor of a part of a larger model."""
        also = tuple(f"{theirs}.{name}" for name in self.also)
        return self._replace(ours=f"{ours}.{self.ours}", theirs=f"{theirs}.{self.theirs}", also=also)


def assemble(rules: list[Rule], tensors: Mapping[str, Tensor]) -> dict[str, Shaped[Tensor, "..."]]:
    """Our tensors by name, made from the published ones; differentiable."""
    parts: dict[str, list[Tensor]] = {}
    for rule in rules:
        sources = (tensors[name] for name in (rule.theirs, *rule.also))
        parts.setdefault(rule.ours, []).append(rule.view(*sources))
    return {name: part[0] if len(part) == 1 else torch.cat(part) for name, part in parts.items()}


def refuse_unknown(config: Config, known: set[str], only: Config, where: str) -> None:
    """Raise InputError for options that do not exist, or have a value that is not offered."""
    wrong = [f"unknown option {name!r}" for name in config if name not in known]
    wrong += [
        f"{name}={config[name]!r} (offered: {value!r})"
        for name, value in only.items()
        if config.get(name, value) != value
    ]
    if wrong:
        raise InputError(f"published config of {where}: " + ", ".join(wrong))


def completed(config: Config, inferred: Config) -> tuple[dict[str, Any], list[str]]:
    """A published config without sections, completed by what was inferred, and where the two contradict each other."""
    problems = [
        f"config: {name}={config[name]!r}, but the tensors have {known!r}"
        for name, known in inferred.items()
        if config.get(name) is not None and config[name] != known
    ]
    return {**config, **inferred}, problems


class Layout(NamedTuple):
    """A way in which models are stored."""

    root: str
    """A tensor that every such model has; what stands before it in a file is a prefix of all names."""
    variants: tuple[str, ...]
    """Whose code may have written it, the first by default; they differ in what no tensor tells."""
    essential: Callable[[Shapes], dict[str, int]]
    """Tensors without which the structure cannot be read, and their numbers of axes."""
    infer: Callable[[Shapes], dict[str, Any]]
    """The options of the published config that the shapes tell."""
    merge: Callable[[Config, Config], tuple[dict[str, Any], list[str]]]
    """Published config, inferred options -> all of them, and the contradictions."""
    build: Callable[[Config, Any], Any]
    """Our model for a complete config."""
    rules: Callable[[Any, Any, Config], list[Rule]]
    """Model, variant, complete config -> where every tensor of the model comes from."""
    tied: Callable[[Shapes], dict[str, str]]
    """Names of tensors that are stored again -> the name that the rules read."""
    ignored: Callable[[str, Config], bool]
    """Whether no rule needs a tensor with this config."""


def same(ours: str, theirs: str, module: nn.Module) -> list[Rule]:
    """Rules for a module that is stored as ours is."""
    return [
        Rule(f"{ours}.{name}", f"{theirs}.{name}", tuple(tensor.shape)) for name, tensor in module.named_parameters()
    ]
