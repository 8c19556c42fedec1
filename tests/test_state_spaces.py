"""What the state-space mixers have in common beyond the laws: widths, refusals, and constructors that are schemas."""

from functools import partial
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from longreach.errors import InputError
from longreach.mixers import DSS, S4, S4D, S5, LiquidS4, S4DOptions, S4Options, S5Options

SYSTEMS: dict[str, Any] = {
    "S4": partial(S4, d_state=4),
    "S4-window": partial(S4, d_state=4, options=S4Options(kernel_length=4)),
    "S4D": partial(S4D, d_state=4),
    "S4D-window": partial(S4D, d_state=4, options=S4DOptions(kernel_length=4)),
    "DSS": partial(DSS, d_state=4, version="exp"),
    "DSS-softmax": partial(DSS, d_state=4, max_length=20),
    "S5": partial(S5, d_state=4, n_blocks=1),
    "S5-liquid": partial(S5, d_state=4, n_blocks=1, options=S5Options(liquid=True)),
    "LiquidS4": partial(LiquidS4, d_state=4),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_bidirectional_mixer_has_no_recurrent_view(name: str) -> None:
    mixer, state = SYSTEMS[name](2, causal=False), SYSTEMS[name](2).init_state(1)
    for call in (
        lambda: mixer.init_state(1),
        lambda: mixer.step(torch.zeros(1, 2), state),
        lambda: mixer.prefill(torch.zeros(1, 3, 2), state),
    ):
        with pytest.raises(InputError, match="reads the future"):
            call()


@pytest.mark.parametrize("name", SYSTEMS)
def test_outputs_are_as_wide_as_inputs_and_states_as_parameters(name: str) -> None:
    """S4 computes its states in float64, whatever its parameters are."""
    mixer = SYSTEMS[name](3)
    wanted = torch.complex128 if isinstance(mixer, S4) else torch.complex64
    y, state = mixer.step(torch.randn(2, 3).bfloat16(), mixer.init_state(2))
    assert (y.dtype, state.modes.dtype) == (torch.bfloat16, wanted)
    y, state = mixer.prefill(torch.randn(2, 5, 3).bfloat16(), state)
    assert (y.dtype, state.modes.dtype) == (torch.bfloat16, wanted)


@pytest.mark.parametrize("name", SYSTEMS)
def test_padding_of_nan_stays_where_it_is(name: str) -> None:
    mixer = SYSTEMS[name](3)
    x, mask = torch.randn(2, 6, 3), torch.tensor([[False, False, True, True, True, True], [True] * 6])
    x[0, :2] = float("nan")
    assert mixer(x, mask)[mask].isfinite().all()
    y, state = mixer.prefill(x, mixer.init_state(2), mask)
    assert y[mask].isfinite().all()
    assert all(part.isfinite().all() for part in state)


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        *((cls, {"n_ssm": 3}, "n_ssm=3 must divide d_model=8") for cls in (S4, S4D, LiquidS4)),
        *((cls, {"d_state": 5}, "d_state=5 must be even") for cls in (S4, S4D, LiquidS4)),
        *((cls, {"dt_min": 0.2}, "dt_min=0.2 and dt_max=0.1") for cls in (S4, S4D, S5, LiquidS4)),
        *((cls, {"dt_min": 0.0}, "dt_min=0.0") for cls in (S4, S4D, S5, LiquidS4)),
        (DSS, {"version": "exp", "dt_min": 0.2}, "dt_min=0.2 and dt_max=0.1"),
        (S5, {"options": S5Options(rate=0.0)}, "rate=0.0 must be positive"),
        *(
            (cls, {"options": options(**values)}, message)
            for cls, options in ((S4, S4Options), (S4D, S4DOptions))
            for values, message in (
                ({"rate": 0.0}, "rate=0.0 must be positive"),
                ({"rate": 0.0, "kernel_length": 4}, "rate=0.0 must be positive"),
                ({"rate": 4.0, "kernel_length": 1}, "kernel_length=1 leaves no tap at rate=4.0"),
            )
        ),
    ],
)
def test_bad_options_are_named(cls: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cls(8, **arguments)


@pytest.mark.parametrize(
    ("cls", "config", "expected"),
    [
        (S4, {"init": ["legs", "lin"], "options": {"kernel_length": 7}}, {"taps": 7}),
        (S4D, {"init_options": {"B": "random"}, "options": {"kernel_length": 7}}, {"taps": 7}),
        (DSS, {"version": "exp-re-im", "options": {"separate_dt": False}}, {"version": "exp-re-im"}),
        (S5, {"n_blocks": 2, "options": {"groups": "fast_B"}}, {"options": S5Options(groups="fast_B")}),
        (LiquidS4, {"order": None, "init": "inv"}, {"order": None}),
    ],
)
def test_the_constructor_is_a_schema(cls: Any, config: dict[str, Any], expected: dict[str, Any]) -> None:
    """All options can be given in a configuration file."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "mixer")
    mixer = parser.instantiate(parser.parse_object({"mixer": {"d_model": 4, "d_state": 8} | config})).mixer
    assert {name: getattr(mixer, name) for name in expected} == expected
