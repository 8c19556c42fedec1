"""Groups of parameters, the schedule, and the options that are refused."""

import itertools
import math

import pytest
import torch
from torch import nn

from longreach.errors import InputError
from longreach.mixers import OptimHint, SequenceMixer
from longreach.training import TrainingOptions
from longreach.training.optimiser import make_optimiser, parameter_groups, set_lr_factor
from longreach.training.schedule import evaluation_interval, lr_factor, steps_within


class HintedMixer(SequenceMixer):
    """Parameters of every kind; one of them only declared in an instance."""

    optim_hints = {"log_dt": OptimHint(lr=1e-4, weight_decay=False), "kernel": OptimHint(lr_scale=0.5)}

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model, causal=True)
        self.log_dt = nn.Parameter(torch.zeros(d_model, 2))
        self.kernel = nn.Parameter(torch.zeros(d_model, 3))
        self.gate = nn.Parameter(torch.zeros(d_model, 4))
        self.optim_hints = {**self.optim_hints, "gate": OptimHint(weight_decay=False)}

    def forward(self, x, mask=None):
        return x


def model() -> nn.Module:
    network = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 4),
            "head": nn.Linear(4, 5, bias=True),
            "norm": nn.LayerNorm(4),
            "mixer": HintedMixer(4),
            "frozen": nn.Linear(4, 4),
        }
    )
    for parameter in network["frozen"].parameters():
        parameter.requires_grad = False
    return network


def settings(network: nn.Module) -> dict[str, tuple[float, float]]:
    """Name -> (learning rate, decay) for every parameter in a group; each in exactly one."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {}
    for group in parameter_groups(network, TrainingOptions(steps=1, lr=0.01, weight_decay=0.2)):
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in found
            found[name] = (group["lr"], group["weight_decay"])
    return found


def test_every_parameter_gets_what_its_kind_and_its_hint_ask_for() -> None:
    assert settings(model()) == {
        "embedding.weight": (0.01, 0.0),
        "head.weight": (0.01, 0.2),
        "head.bias": (0.01, 0.0),
        "norm.weight": (0.01, 0.0),
        "norm.bias": (0.01, 0.0),
        "mixer.log_dt": (1e-4, 0.0),
        "mixer.kernel": (0.005, 0.2),
        "mixer.gate": (0.01, 0.0),
    }


def test_a_head_tied_to_the_embedding_does_not_decay() -> None:
    network = model()
    network["head"].weight = network["embedding"].weight
    assert settings(network)["embedding.weight"] == (0.01, 0.0)
    assert "head.weight" not in settings(network)


def test_the_schedule_scales_every_group_from_its_own_peak() -> None:
    optimiser = make_optimiser(model(), TrainingOptions(steps=1, lr=0.01))
    for factor in (0.5, 0.25):
        set_lr_factor(optimiser, factor)
        assert {group["lr"] for group in optimiser.param_groups} == {0.01 * factor, 1e-4 * factor, 0.005 * factor}


def test_the_schedule_warms_up_then_follows_half_a_cosine() -> None:
    options = TrainingOptions(steps=110, warmup_steps=10, min_lr_ratio=0.1)
    factors = [lr_factor(step, 110, options) for step in range(110)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx(0.55)
    assert factors[85] == pytest.approx(0.1 + 0.9 * (1 + math.cos(0.75 * math.pi)) / 2)
    assert factors[109] == pytest.approx(0.1, abs=1e-3)
    assert all(earlier > later for earlier, later in itertools.pairwise(factors[10:]))


def test_the_schedule_needs_the_number_of_steps_only_after_the_warm_up() -> None:
    options = TrainingOptions(minutes=1.0, warmup_steps=10)
    assert lr_factor(4, None, options) == 0.5
    with pytest.raises(ValueError, match="number of steps"):
        lr_factor(10, None, options)


@pytest.mark.parametrize(
    ("evaluate_every", "expected"), [(None, (100 - 10 * 3) / 0.5), (20, (100 - 3) / (0.5 + 3 / 20))]
)
def test_a_budget_is_filled_with_steps_and_evaluations(evaluate_every: int | None, expected: float) -> None:
    options = TrainingOptions(minutes=1.0, evaluate_every=evaluate_every)
    steps = steps_within(100.0, [9.0, 5.0, 0.5, 0.4, 0.5, 0.6], 3.0, options)
    assert steps == int(expected)
    assert steps_within(-5.0, [1.0], 3.0, options) == 0


def test_ten_evaluations_unless_told_otherwise() -> None:
    assert evaluation_interval(95, TrainingOptions(steps=95)) == 10
    assert evaluation_interval(3, TrainingOptions(steps=3)) == 1
    assert evaluation_interval(95, TrainingOptions(steps=95, evaluate_every=7)) == 7


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"steps": 1, "minutes": 1.0},
        {"steps": 0},
        {"minutes": -1.0},
        {"minutes": math.nan},
        {"minutes": 1.0, "warmup_steps": 9},
        {"steps": 1, "lr": 0.0},
        {"steps": 1, "lr": math.inf},
        {"steps": 1, "grad_clip": 0.0},
        {"steps": 1, "accumulate": 0},
        {"steps": 1, "evaluate_every": 0},
        {"steps": 1, "save_every": -1},
        {"steps": 1, "log_every": 0},
        {"steps": 1, "weight_decay": -0.1},
        {"steps": 1, "warmup_steps": -1},
        {"steps": 1, "betas": (0.9, 1.0)},
        {"steps": 1, "threads": 0},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"training.{list(wrong)[-1]}" if wrong else "training.steps"):
        TrainingOptions(**wrong)
