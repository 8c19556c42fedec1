"""Every mixer, in every configuration of cases/, obeys every law that applies to it."""

import dataclasses
import inspect
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import laws
import pytest
import torch
import where
from mixer_cases import CASES, FINITE_STATE, WIDTH

from longreach import mixers
from longreach.mixers import SequenceMixer
from longreach.models import MLP, Backbone, LanguageModel

CLASSES = [
    cls
    for name in mixers.__all__
    if inspect.isclass(cls := getattr(mixers, name)) and issubclass(cls, SequenceMixer) and cls is not SequenceMixer
]


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """In float64 and eval mode, its parameters moved so that no zero or one hides a mistake, where the tests run."""
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module.to(where.device)


def make(case: str, seed: int = 0) -> Any:
    """The mixer of a case, ready for the laws."""
    torch.manual_seed(seed)
    return shaken(CASES[case]())


CAUSAL = [case for case in CASES if make(case).causal]
LAWS = [(c, law) for c in CASES for law in laws.laws_of(make(c), finite_state=c in FINITE_STATE)]


@pytest.mark.parametrize(("case", "law"), LAWS, ids=lambda value: getattr(value, "__name__", value))
def test_law(case: str, law) -> None:
    law(make(case))


@pytest.mark.parametrize("case", CASES)
def test_saves_and_loads(case: str) -> None:
    laws.saves_and_loads(make(case), make(case, seed=1))


def hybrid(*names: str) -> Backbone:
    """A backbone with one layer of each of these cases."""
    layers = [lambda width, name=name: CASES[name]() for name in names]
    return Backbone(WIDTH, n_layers=len(names), mixers=layers, channel_mixer=MLP)


ONE_OF_EACH = list({type(make(case)): case for case in CAUSAL}.values())
TEAMS = [ONE_OF_EACH[i : i + 5] for i in range(0, len(ONE_OF_EACH), 5)]
"""One case for each causal class, a few together: what a law costs grows with the square of their number."""


def team_model(team: list[str]) -> torch.nn.Module:
    """A language model with one layer of each case."""
    return shaken(LanguageModel(11, hybrid(*team)))


@pytest.mark.parametrize(
    ("team", "law"),
    [(team, law) for team in TEAMS for law in laws.laws_of(team_model(team))],
    ids=lambda value: getattr(value, "__name__", "+".join(value) if isinstance(value, list) else None),
)
def test_a_language_model_of_all_mixers_obeys_the_laws(team: list[str], law) -> None:
    law(team_model(team))


def test_a_bidirectional_layer_makes_a_backbone_bidirectional() -> None:
    two_sided = [case for case in CASES if case not in CAUSAL]
    backbone = shaken(hybrid(CAUSAL[0], two_sided[0]))
    for law in laws.laws_of(backbone):
        law(backbone)


@pytest.mark.parametrize("case", CASES)
def test_float32_is_close_to_float64(case: str) -> None:
    """Guards against a tensor made in the wrong precision; the bound is a few hundred float32 roundings."""
    mixer = make(case)
    x = laws.random_input(mixer, length=min(64, mixer.max_length or 64))
    exact = mixer(x)
    error = (mixer.float()(x.float()) - exact).abs().max() / exact.abs().max()
    assert error < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_optim_hints_name_parameters(case: str) -> None:
    """Every hint belongs to a parameter, so that a renamed parameter does not lose its hint."""
    mixer = make(case)
    assert set(mixer.optim_hints) <= {name for name, _ in mixer.named_parameters()}


def choices(annotation: Any, default: Any) -> list[Any]:
    """The values that an option must take in some case; a type stands for any value of it that is not the default."""
    if dataclasses.is_dataclass(annotation):
        return []
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if annotation is bool:
        return [False, True]
    return [object]


def options(callable_: Any) -> dict[str, tuple[Any, Any]]:
    """Name -> (annotation, default) of the options that a constructor takes, those of option groups with a dot."""
    hints = get_type_hints(callable_.__init__)
    found = {}
    for name, parameter in inspect.signature(callable_).parameters.items():
        if name == "d_model":
            continue
        found[name] = hints[name], parameter.default
        if dataclasses.is_dataclass(hints[name]):
            found |= {f"{name}.{inner}": value for inner, value in options(hints[name]).items()}
    return found


def flatten(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with the fields of option groups next to them."""
    flat = {}
    for name, value in arguments.items():
        flat[name] = value
        if dataclasses.is_dataclass(value):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            flat |= {f"{name}.{inner}": setting for inner, setting in flatten(fields).items()}
    return flat


def settings(monkeypatch: pytest.MonkeyPatch, cls: type[SequenceMixer]) -> dict[str, list[Any]]:
    """For every option of a mixer, the values that the cases give it."""
    taken: dict[str, list[Any]] = defaultdict(list)
    original = cls.__init__

    def record(self: SequenceMixer, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(original).bind(self, *args, **kwargs)
        bound.apply_defaults()
        for name, value in flatten(bound.arguments).items():
            taken[name].append(value)
        original(self, *args, **kwargs)

    monkeypatch.setattr(cls, "__init__", record)
    for case in CASES.values():
        case()
    return taken


def unused(taken: dict[str, list[Any]], available: dict[str, tuple[Any, Any]]) -> list[str]:
    """The options, or choices of options, that no case makes use of."""
    missing = []
    for name, (annotation, default) in available.items():
        for choice in choices(annotation, default):
            seen = any(value != default for value in taken[name]) if choice is object else choice in taken[name]
            if not seen:
                missing.append(name if choice is object else f"{name}={choice!r}")
    return missing


@pytest.mark.parametrize("cls", CLASSES)
def test_every_option_is_used_in_a_case(cls: type[SequenceMixer], monkeypatch: pytest.MonkeyPatch) -> None:
    available = options(cls)
    assert not unused(settings(monkeypatch, cls), available)


def test_unused_options_are_seen() -> None:
    @dataclasses.dataclass
    class Group:
        depth: int = 1
        kind: Literal["a", "b"] = "a"

    class Mixer:
        def __init__(self, d_model: int, *, size: int = 3, loud: bool = False, group: Group = Group()) -> None:  # noqa: B008
            pass

    available = options(Mixer)
    default = flatten({"size": 3, "loud": False, "group": Group()})
    taken = {name: [value] for name, value in default.items()}
    assert unused(taken, available) == ["size", "loud=True", "group.depth", "group.kind='b'"]
    other = flatten({"size": 4, "loud": True, "group": Group(2, "b")})
    assert not unused({name: [default[name], other[name]] for name in default}, available)


def test_every_public_mixer_has_a_case() -> None:
    assert {type(make(case)) for case in CASES} == set(CLASSES)
    assert set(CASES) >= FINITE_STATE


def test_compiles_without_graph_breaks() -> None:
    """In a process of its own, because torch.compile cannot trace through the run-time shape checks of this one."""
    folder = Path(__file__).parent
    subprocess.run([sys.executable, "-W", "error", folder / "compile_all_mixers.py"], check=True, cwd=folder.parent)
