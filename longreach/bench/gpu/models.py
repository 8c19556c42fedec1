"""Whole language models of equal size: tokens per second and memory of training, and of generation.

They read bytes, have the same number of blocks, the same width and the same channel mixers, and are newly initialised:
what the weights are does not change the work.

Axes: b batch, l length, v vocabulary.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from longreach.bench.gpu.cells import Cell, Numbers
from longreach.bench.gpu.clock import Meter
from longreach.bench.gpu.sizes import Sizes
from longreach.inference.captured_step import CapturedStep, changes
from longreach.inference.eval_mode import eval_mode
from longreach.mixers import H3, S4D, Attention, Hyena, SequenceMixer
from longreach.mixers.base import State, map_state
from longreach.mixers.constant_weights import Kept, constant_weights
from longreach.models import MLP, Backbone, LanguageModel

TRAINING, GENERATION = "training", "generation"
VOCABULARY, HEAD_SIZE, CHUNK = 256, 64, 1 << 14
HALF = "Attention, bfloat16"
"""In generation, where reading the cache is what attention does, also one whose cache has half the size."""
MAIN_LENGTHS = (1 << 10, 1 << 12, 1 << 13, 1 << 14, 1 << 16)
MAIN_CONTEXT = 1 << 14


def training_cells(sizes: Sizes) -> list[Cell]:
    """Every model at every length."""
    names = list(_mixers(sizes, 1))
    return [
        Cell(TRAINING, "a step", name, length, 1 + (length not in MAIN_LENGTHS), partial(_train, sizes, name, length))
        for length in sizes.training_lengths
        for name in names
    ]


def generation_cells(sizes: Sizes) -> list[Cell]:
    """Every model at every batch size and context."""
    names = [*_mixers(sizes, 1), HALF]
    return [
        Cell(
            *(GENERATION, f"batch {batch}", name, context, 1 + (context != MAIN_CONTEXT)),
            partial(_generate, sizes, name, batch, context),
        )
        for batch in sizes.batches
        for context in sizes.contexts
        for name in names
    ]


def _mixers(sizes: Sizes, length: int) -> dict[str, Callable[[int], SequenceMixer]]:
    """By name, able to read `length` positions."""
    return {
        "Attention": partial(Attention, n_heads=max(1, sizes.width // HEAD_SIZE)),
        "Hyena": partial(Hyena, max_length=length),
        "H3": H3,
        "S4D": S4D,
    }


def _model(sizes: Sizes, name: str, length: int, device: str) -> LanguageModel:
    torch.manual_seed(0)
    mixer = _mixers(sizes, length)[name.partition(",")[0]]
    backbone = Backbone(sizes.width, n_layers=sizes.layers, mixers=[mixer], channel_mixer=MLP, recompute=True)
    model = LanguageModel(VOCABULARY, backbone).to(device)
    return model.bfloat16() if name == HALF else model


def _train(sizes: Sizes, name: str, length: int, meter: Meter) -> Numbers:
    """Forward, backward and a step of AdamW, products in bfloat16, blocks recomputed."""
    model = _model(sizes, name, length, meter.device)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(VOCABULARY, (max(1, sizes.training_tokens // length), length + 1), device=meter.device)

    def step() -> None:
        with torch.autocast(meter.device, dtype=torch.bfloat16):
            loss = model.token_losses(tokens[:, :-1], tokens[:, 1:]).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    step()
    return {
        "training_bytes": meter.bytes(step),
        "training_seconds": meter.wall_clock(step),
        "tokens": float(tokens[:, 1:].numel()),
    }


def _generate(sizes: Sizes, name: str, batch: int, context: int, meter: Meter) -> Numbers:
    """The most likely tokens after a context, by steps as `longreach.inference` makes them."""
    model = _model(sizes, name, context + 8 * sizes.written, meter.device)
    with eval_mode(model), constant_weights(Kept()):
        logits, state = _read(model, batch, context, meter.device)
        _, after = model.step(logits.argmax(-1), state)
        numbers = {"state_bytes": _state_bytes(state), "written": float(batch * sizes.written)}
        eager = partial(_write, model.step, sizes.written, logits, state)
        eager()
        numbers["eager_seconds"] = meter.wall_clock(eager)
        if meter.device == "cuda" and changes(state, after) is None:
            captured = CapturedStep(model, state)
            replayed = partial(_replay, captured, sizes.written, logits)
            replayed()
            numbers["captured_seconds"] = meter.wall_clock(replayed)
    return numbers


def _read(model: LanguageModel, batch: int, context: int, device: str) -> tuple[Tensor, State]:
    """The logits and the state after a context, which is read once and is the same in all rows of the batch."""
    logits, state = torch.empty(0), model.init_state(1)
    for chunk in torch.randint(VOCABULARY, (1, context), device=device).split(CHUNK, dim=1):
        logits, state = model.read(chunk, state)
    repeated = map_state(lambda leaf: leaf.repeat(batch, *[1] * (leaf.ndim - 1)), state)
    return logits.repeat(batch, 1), repeated


def _write(step: Callable[[Tensor, State], tuple[Tensor, State]], count: int, logits: Tensor, state: State) -> None:
    for _ in range(count):
        logits, state = step(logits.argmax(-1), state)


def _replay(captured: CapturedStep, count: int, logits: Tensor) -> None:
    """From wherever the recording has come to: every step is the same work."""
    for _ in range(count):
        logits = captured(logits.argmax(-1))


def _state_bytes(state: State) -> float:
    """Of everything that generation keeps."""
    sizes: list[int] = []
    map_state(lambda leaf: sizes.append(leaf.numel() * leaf.element_size()) or leaf, state)
    return float(sum(sizes))
