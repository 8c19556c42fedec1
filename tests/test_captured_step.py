"""Steps as CUDA graphs: which mixers have steps that can be recorded, and that replaying them changes nothing."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import laws
import pytest
import torch
from mixer_cases import CASES, FINITE_STATE, WIDTH
from test_mixers import CAUSAL, make
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from longreach.inference import generation
from longreach.inference.captured_step import CapturedStep, changes
from longreach.inference.eval_mode import eval_mode
from longreach.inference.generation import GenerationOptions, TokenStream
from longreach.mixers import H3, RWKV4, S4D, Attention, SequenceMixer, map_state
from longreach.mixers.constant_weights import constant_weights
from longreach.models import MLP, Backbone, LanguageModel

STEPS = 70
"""Past the size of the smallest block of a cache and of an online convolution."""
GROWING = {
    "Attention": "a key-value cache takes in every position",
    "CKConv": "an online convolution merges the blocks of its past; a dense window has to fill first",
    "GAU": "all pairs of positions meet, so all are kept",
    "Hyena": "an online convolution merges the blocks of its past",
    "LocalAttention": "the chunk that is being read grows",
    "LongConv": "an online convolution merges the blocks of its past",
    "Longformer": "a key-value cache takes in every position",
    "Mega": "the chunk that is being read grows",
    "MonarchMixer": "an online convolution merges the blocks of its past",
    "Reformer": "a key-value cache takes in every position",
    "SGConv": "an online convolution merges the blocks of its past",
    "Sinkhorn": "a key-value cache takes in every position",
    "SparseAttention": "a key-value cache takes in every position",
    "Synthesizer": "all values are kept",
}
"""Classes whose states are other tensors after every step, with the reason: these generate step by step."""


def states_of(mixer: SequenceMixer) -> Iterator[Any]:
    """The states after 0, 1, 2 ... steps."""
    state = mixer.init_state(2)
    for _ in range(min(STEPS, (mixer.max_length or STEPS + 1) - 1)):
        yield state
        _, state = mixer.step(torch.randn(2, WIDTH, dtype=torch.float64), state)
    yield state


@pytest.mark.parametrize("case", CAUSAL)
def test_one_step_tells_whether_the_shapes_of_a_state_stay(case: str) -> None:
    """Once a step has kept them, all later ones do; and they stay where, and only where, nobody is named above."""
    mixer = make(case)
    with torch.inference_mode(), constant_weights({}):
        states = list(states_of(mixer))
    kept = [changes(before, after) is None for before, after in pairwise(states)]
    assert kept == sorted(kept), "a state kept its shapes, and then it did not"
    if type(mixer).__name__ in GROWING:
        assert not kept[0]
    else:
        assert all(kept)
        assert case in FINITE_STATE


class NothingFromTheHost(TorchFunctionMode):
    """Raises where numbers of Python become tensors: copying them to a GPU cannot be recorded."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function not in (torch.tensor, torch.as_tensor, torch.from_numpy), f"{function} of {args}"
        return function(*args, **(kwargs or {}))


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors on `meta` pass for tensors on a GPU that is recording: nobody can look at their numbers."""
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda x: x.is_meta), raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no `meta`
    with NothingFromTheHost():
        yield


def as_on_gpu(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


def move(mixer: nn.Module) -> None:
    """Put parameters and buffers on the GPU that is not there."""
    for module in mixer.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(as_on_gpu(parameter)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, as_on_gpu(buffer))


@pytest.mark.parametrize("case", [case for case in CAUSAL if type(make(case)).__name__ not in GROWING])
def test_a_step_never_waits_for_the_gpu(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what follows from the weights kept, as in generation: that is computed before anything is recorded."""
    mixer, kept = CASES[case]().eval(), {}
    with torch.inference_mode(), constant_weights(kept):
        _, state = mixer.step(torch.randn(2, WIDTH), mixer.init_state(2))
    with torch.inference_mode(), fake_gpu(monkeypatch):
        there = {key: on_gpu(value) for key, value in kept.items()}
        move(mixer)
        with constant_weights(there):
            y, _ = mixer.step(torch.empty(2, WIDTH, device="meta"), map_state(as_on_gpu, state))
    assert y.is_meta


def on_gpu(value: Any) -> Any:
    """Whatever was kept, its tensors on the GPU."""
    if isinstance(value, Tensor):
        return as_on_gpu(value)
    if isinstance(value, tuple):
        return getattr(type(value), "_make", tuple)([on_gpu(item) for item in value])
    return value


def test_waiting_for_the_gpu_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gpu(monkeypatch):
        x = torch.empty(2, device="meta")
        with pytest.raises(RuntimeError, match="item"):
            bool(x.any())
        with pytest.raises(AssertionError, match="built-in method tensor"):
            torch.tensor([1.0])


def test_changes_are_named() -> None:
    a, b = torch.zeros(2, 3), torch.zeros(2, 4)
    assert changes((a, (a,)), (a, (a,))) is None
    assert "(2, 3)" in str(changes((a,), (b,)))
    assert "float64" in str(changes((a, (a,)), (a, (a.double(),))))
    assert "1 parts" in str(changes(((a,),), ((a, a),)))
    assert "several" in str(changes((a,), ((a,),)))


RECORDED = {"s4d": S4D, "h3": lambda d: H3(d), "rwkv4": RWKV4}


def model_of(mixer: Any) -> LanguageModel:
    torch.manual_seed(3)
    return LanguageModel(11, Backbone(8, n_layers=2, mixers=[mixer], channel_mixer=MLP), init_std=0.5).double()


def stand_in(run: Any) -> tuple[Any, Tensor]:
    """What recording does, without a GPU: the call once before, its result in one place, and the call repeated."""
    run()
    result = run().clone()
    return lambda: result.copy_(run()), result


@pytest.mark.parametrize("name", RECORDED)
def test_replaying_is_stepping(name: str) -> None:
    model, tokens = model_of(RECORDED[name]), torch.randint(11, (3, 20))
    with eval_mode(model), constant_weights({}):
        _, state = model.prefill(tokens[:, :5], model.init_state(3))
        before = map_state(torch.clone, state)
        captured = CapturedStep(model, state, record=stand_in)
        for token in tokens[:, 5:].unbind(1):
            expected, state = model.step(token, state)
            laws.equal(captured(token), expected)
            laws.compare_states(captured.state, state)
        laws.compare_states(model.prefill(tokens[:, :5], model.init_state(3))[1], before)


class Swapping(LanguageModel):
    """Hands its two tensors on crosswise, and one of them as a view."""

    def __init__(self) -> None:
        super().__init__(11, Backbone(2, n_layers=1, mixers=[S4D], channel_mixer=MLP))

    def step(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        first, second = state
        return first + token[:, None], (second.view_as(first), first)


def test_a_state_that_is_handed_on_crosswise_is_not_lost() -> None:
    model, token = Swapping(), torch.zeros(1, dtype=torch.int64)
    captured = CapturedStep(model, (torch.tensor([[1.0]]), torch.tensor([[2.0]])), record=stand_in)
    assert [captured(token).item() for _ in range(4)] == [1.0, 2.0, 1.0, 2.0]


def write(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, record: Any
) -> tuple[list[dict[int, int]], str | None]:
    """Tokens of three prompts, one of which ends early; and why they were written step by step."""
    stream = TokenStream(model, [[1, 2, 3], [4], [5, 6]], GenerationOptions(max_new_tokens=12, seed=5))
    if record is not None:
        stream.eager = None
        monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
        monkeypatch.setattr(generation, "CapturedStep", partial(CapturedStep, record=record))
    written = [stream.advance() for _ in range(4)]
    stream.drop([1])
    return [*written, *(stream.advance() for _ in range(8))], stream.eager


@pytest.mark.parametrize("name", RECORDED)
def test_generation_replays_and_records_anew_when_rows_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []

    def record(run: Any) -> tuple[Any, Tensor]:
        recorded.append(run)
        return stand_in(run)

    model = model_of(RECORDED[name])
    expected, reason = write(model, monkeypatch, None)
    assert "not on a GPU" in str(reason)
    assert write(model, monkeypatch, record) == (expected, None)
    assert len(recorded) == 2


def test_generation_of_what_cannot_be_recorded_goes_on_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(lambda d: Attention(d, n_heads=2))
    expected, _ = write(model, monkeypatch, None)
    written, reason = write(model, monkeypatch, stand_in)
    assert written == expected
    assert "a tensor of the state is" in str(reason)

    def refuse(run: Any) -> Any:
        run()
        raise RuntimeError("operation not permitted when stream is capturing")

    model = model_of(S4D)
    expected, _ = write(model, monkeypatch, None)
    written, reason = write(model, monkeypatch, refuse)
    assert written == expected
    assert "recording failed: operation not permitted" in str(reason)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU")
@pytest.mark.gpu
@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_on_a_gpu_is_stepping(name: str) -> None:
    model, tokens = model_of(RECORDED[name]).cuda(), torch.randint(11, (3, 20), device="cuda")
    with eval_mode(model), constant_weights({}):
        _, state = model.prefill(tokens[:, :5], model.init_state(3))
        _, state = model.step(tokens[:, 5], state)
        captured = CapturedStep(model, state)
        for token in tokens[:, 6:].unbind(1):
            expected, state = model.step(token, state)
            torch.testing.assert_close(captured(token), expected, **laws.TOLERANCE)
