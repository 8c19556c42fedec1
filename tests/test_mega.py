"""Mega beyond the laws and the published numbers: its start, its parts, its errors, published checkpoints."""

import json
from pathlib import Path
from typing import Any

import laws
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from longreach.errors import InputError
from longreach.mixers import Mega, MegaOptions
from longreach.mixers.moving_average import MovingAverage
from longreach.models import MLP, Backbone
from longreach.models.published import load_published
from longreach.models.published_mega import build, rules
from longreach.models.published_mega_layer import build_mega
from longreach.ops import OPS, damped_average

GOLDEN = Path(__file__).parent / "golden" / "mega"


SLOW = (torch.ones(1, 3000, 4), torch.full((1, 4, 2), 0.5), torch.full((1, 4, 2), 1e-6), torch.zeros(4))
"""Arguments of damped_average."""


def is_normal(x: Tensor, std: float) -> bool:
    """Whether mean and deviation are within four standard errors."""
    error = 4 * std / x.numel() ** 0.5
    return bool(abs(x.mean()) < error and abs(x.std() - std) < error)


def test_the_published_start() -> None:
    mixer = Mega(64, d_value=96, d_key=600, d_state=16, chunk_size=900)
    average = mixer.average
    assert is_normal(average.delta, 0.2)
    assert is_normal(average.alpha, 0.2)
    assert is_normal(average.beta - (-1.0) ** torch.arange(16), 0.02)
    assert is_normal(average.gamma, 1.0)
    assert is_normal(MovingAverage(2000).omega, 1.0)
    for linear in (mixer.value, mixer.base, mixer.out):
        assert is_normal(linear.weight, 0.02)
        assert not linear.bias.any()
    assert is_normal(mixer.scale, 0.02)
    assert not mixer.shift.any()
    assert mixer.bias.shape == (2 * 900 - 1,)
    assert is_normal(mixer.bias, 0.02)


def test_the_taps_of_the_average() -> None:
    average = MovingAverage(3, d_state=2, kernel_length=5).double()
    p, a = average.delta.sigmoid(), average.alpha.sigmoid()
    lags = torch.arange(5, dtype=torch.float64)
    taps = (average.gamma * p * average.beta)[..., None] * (1 - p * a)[..., None] ** lags / 2**0.5
    torch.testing.assert_close(average.kernels(9), taps.sum(-2), rtol=1e-12, atol=1e-12)


def test_slow_averages_keep_their_digits_in_float32() -> None:
    """The decay of 1 - p a is not that of the rounded difference."""
    average = MovingAverage(4, d_state=8)
    with torch.no_grad():
        average.delta -= 5
        average.alpha -= 5
    kernel = average.kernels(16_384)
    exact = average.double().kernels(16_384)
    assert (kernel - exact).abs().max() < 2e-6 * exact.abs().max()


@pytest.mark.parametrize("backend", [name for name, no in OPS["damped_average"].explain(*SLOW).items() if no is None])
def test_slow_averages_of_long_sequences_keep_their_digits_in_float32(backend: str) -> None:
    """A millionth is forgotten at each position: 1 less that has one digit of it left in float32."""
    average, exact = OPS["damped_average"].backends[backend], OPS["damped_average"].backends["convolution"]
    y, truth = average(*SLOW), exact(*(z.double() for z in SLOW))
    assert (y - truth).norm() < 1e-5 * truth.norm()


def test_averages_that_do_not_fit_are_refused() -> None:
    x, weight, forgotten, skip = SLOW
    with pytest.raises(InputError, match="damped_average: x"):
        damped_average(x, weight, forgotten[..., :1], skip)
    with pytest.raises(InputError, match="1 or 2 directions"):
        damped_average(x, weight.expand(3, -1, -1), forgotten.expand(3, -1, -1), skip)


def test_saturated_averages_are_finite() -> None:
    average = MovingAverage(4)
    with torch.no_grad():
        average.delta += 200
        average.alpha += 200
    x = torch.randn(2, 9, 4)
    y = average(x)
    y.sum().backward()
    assert all(z.isfinite().all() for z in (y, average.step(x[:, 0], average.init_state(2))[0], average.delta.grad))


def test_a_truncated_average_forgets() -> None:
    """In all views: what lies `kernel_length` positions back has no influence at all."""
    average = MovingAverage(4, d_state=3, kernel_length=6).double()
    x = torch.randn(1, 20, 4, dtype=torch.float64)
    other = torch.cat([torch.randn(1, 9, 4, dtype=torch.float64), x[:, 9:]], dim=1)
    torch.testing.assert_close(average(x)[:, 14:], average(other)[:, 14:])
    ends = []
    for sequence in (x, other):
        _, state = average.prefill(sequence[:, :12], average.init_state(1))
        for x_t in sequence[:, 12:].unbind(1):
            y, state = average.step(x_t, state)
        ends.append(y)
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_stays_in_its_chunk(causal: bool) -> None:
    """With averages of the present alone, every chunk is mixed as if it stood by itself."""
    options = MegaOptions(kernel_length=1)
    mixer = Mega(8, d_key=4, d_state=2, chunk_size=5, causal=causal, options=options).double()
    x = torch.randn(2, 13, 8, dtype=torch.float64)
    y = mixer(x)
    for part in (slice(0, 5), slice(5, 10), slice(10, 13)):
        laws.equal(y[:, part], mixer(x[:, part]))


def test_averages_cross_the_borders_of_chunks() -> None:
    mixer = Mega(8, d_key=4, d_state=2, chunk_size=5).double()
    x = torch.randn(2, 10, 8, dtype=torch.float64)
    assert not torch.allclose(mixer(x)[:, 5:], mixer(x[:, 5:]))


def test_the_rotary_bias_is_a_product_of_turned_vectors() -> None:
    mixer = Mega(8, d_key=6, position="rotary").double()
    alpha, beta = mixer.bias
    angle = torch.arange(7.0, dtype=torch.float64)[:, None] * 10_000 ** (-torch.arange(3) / 3)

    def turned(x: Tensor) -> Tensor:
        first, second = x[:3], x[3:]
        turn = (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin())
        return torch.cat(turn, dim=-1)

    products = turned(alpha) @ turned(beta).mT  # (7, 7)
    bias = mixer._bias(7)
    for i in range(7):
        laws.equal(products[i], bias[6 - i : 13 - i])


def test_the_gate_leads_from_the_unnormalised_input() -> None:
    """A layer norm does not see a constant that is added to all channels; the residual path does."""
    backbone = Backbone(8, n_layers=1, mixers=[lambda d: Mega(d, d_key=4)], channel_mixer=MLP).double()
    (block,) = backbone.blocks
    assert not list(block.norm.parameters())
    mixer = block.mixer
    x = torch.randn(1, 4, 8, dtype=torch.float64)
    with torch.no_grad():
        mixer.base.bias[:8] = 50  # the gate is open: all is replaced
    laws.equal(x + mixer(x), x + 3 + mixer(x + 3))
    with torch.no_grad():
        mixer.base.bias[:8] = -50  # the gate is shut: nothing is
    assert mixer(x).abs().max() < 1e-15


def test_dropout_in_training() -> None:
    x = torch.randn(2, 40, 8)
    for name in ("dropout", "attention_dropout", "value_dropout"):
        mixer = Mega(8, d_key=4, chunk_size=20, options=MegaOptions(**{name: 0.5}))
        assert not torch.equal(mixer(x), mixer(x))
        state = mixer.init_state(2)
        assert not torch.equal(mixer.prefill(x, state)[0], mixer.prefill(x, state)[0])
        mixer.eval()
        assert torch.equal(mixer(x), mixer(x))


def test_attention_dropout_in_a_step() -> None:
    mixer = Mega(8, d_key=4, options=MegaOptions(attention_dropout=0.5))
    with torch.no_grad():
        mixer.out.weight *= 1000
    _, state = mixer.prefill(torch.randn(2, 9, 8), mixer.init_state(2))
    x = torch.randn(2, 8)
    assert len({mixer.step(x, state)[0].sum().item() for _ in range(5)}) > 1


def test_feature_dropout_drops_channels_of_a_sequence() -> None:
    mixer = Mega(8, d_key=4, options=MegaOptions(feature_dropout=True))
    dropped = mixer._drop(torch.ones(3, 9, 8), 0.5)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert set(Mega(8)._drop(torch.ones(3, 9, 8), 0.5)[0, :, 0].tolist()) == {0.0, 2.0}


def test_generation_holds_one_chunk() -> None:
    """However long the prompts and at whatever places of their chunks, the state stays small."""
    mixer = Mega(4, d_key=4, d_state=2, chunk_size=70).double()
    x = torch.randn(2, 1000, 4, dtype=torch.float64)
    mask = torch.arange(1000) >= torch.tensor([[0], [33]])
    _, state = mixer.prefill(x, mixer.init_state(2), mask)
    for x_t in x[:, :200].unbind(1):
        _, state = mixer.step(x_t, state)
        assert sum(block.size for block in (*state.cache.blocks, state.cache.tail)) <= 2 * 70 + 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, "'chunk_size': 0"),
        ({"d_value": 0}, "'d_value': 0"),
        ({"d_state": 0}, "d_state=0"),
        ({"chunk_size": None}, "needs max_length"),
        ({"max_length": 100}, "take None"),
        ({"position": "rotary", "chunk_size": None, "max_length": 100}, "take None"),
        ({"position": "rotary", "d_key": 5}, "d_key=5 must be even"),
        ({"options": MegaOptions(kernel_length=0)}, "kernel_length=0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Mega(8, **options)


def test_a_bidirectional_one_has_no_recurrent_view() -> None:
    mixer, state, x = Mega(8, causal=False), Mega(8).init_state(1), torch.zeros(1, 2, 8)
    for call in (lambda: mixer.init_state(1), lambda: mixer.step(x[:, 0], state), lambda: mixer.prefill(x, state)):
        with pytest.raises(InputError, match="reads the future"):
            call()


LAYER = {"embed_dim": 8, "zdim": 4, "hdim": 8, "ndim": 2}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"truncation": 0}, "truncation=0"),
        ({"norm_type": "groupnorm"}, "norm_type='groupnorm'"),
        ({"attention_activation": "sparsemax"}, "attention_activation='sparsemax'"),
        ({"zdims": 3}, "unknown option 'zdims'"),
    ],
)
def test_published_options_that_are_not_offered(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_mega(LAYER | config)


CONFIGS = {
    "lm_softmax_chunk4_rotary": {"decoder_chunk_size": 4, "share_decoder_input_output_embed": True},
    "lm_softmax_full_simple": {"max_target_positions": 32, "normalize_before": True, "no_affine_final_norm": True},
    "lm_laplace_chunk": {
        "decoder_chunk_size": 4,
        "attention_activation_fn": "laplace",
        "no_scale_embedding": True,
        "share_decoder_input_output_embed": True,
    },
}
"""What the tensors do not tell."""


def published(case: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dict of a golden case, as fairseq saves it; and all of the file."""
    tensors = {name: tensor.clone() for name, tensor in load_file(GOLDEN / f"{case}.safetensors").items()}
    state = {f"decoder.{n.removeprefix('param/')}": t for n, t in tensors.items() if n.startswith("param/")}
    return state | {"decoder.version": torch.tensor([3.0])}, tensors


@pytest.mark.parametrize("case", CONFIGS)
def test_a_published_language_model(tmp_path: Path, case: str) -> None:
    state, tensors = published(case)
    for i in range(2):
        if f"decoder.layers.{i}.mega_layer.rel_pos_bias.alpha" in state:
            state[f"decoder.layers.{i}.mega_layer.rel_pos_bias._float_tensor"] = torch.zeros(1)
    if case == "lm_laplace_chunk":  # tied, and stored twice
        state["decoder.output_projection.weight"] = state["decoder.embed_tokens.weight"].clone()
    torch.save({"model": state, "epoch": 3}, tmp_path / "checkpoint_best.pt")
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[case]))
    model = load_published(tmp_path).eval()
    torch.testing.assert_close(model(tensors["input_ids"]), tensors["output"], rtol=1e-9, atol=1e-10)
    laws.recurrent_equals_parallel(model)
    laws.chunked_equals_parallel(model)


def test_a_published_norm_of_embeddings_and_no_maps_between_mixers(tmp_path: Path) -> None:
    sizes = {"vocab_size": 11, "decoder_layers": 2, "decoder_embed_dim": 8, "decoder_hidden_dim": 6}
    sizes |= {"decoder_ffn_embed_dim": 0, "decoder_z_dim": 4, "decoder_n_dim": 2}
    config = {"decoder_chunk_size": 5, "normalization_type": "scalenorm", "share_decoder_input_output_embed": True}
    model = build(sizes | config | {"normalize_embedding": True}, "fairseq").double().eval()
    state = {rule.theirs: torch.randn(rule.shape).double() for rule in rules(model, "fairseq", config)}
    assert "embed_norm.norm.scalar" in state
    assert "layers.0.nffn.fc1.weight" not in state
    save_file(state, tmp_path / "model.safetensors")
    model = load_published(tmp_path, config=config).eval()
    tokens = torch.randint(11, (2, 9))
    x = 8**0.5 * state["embed_tokens.weight"][tokens]
    x = state["embed_norm.norm.scalar"] * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    laws.equal(model(tokens), model.backbone.inner(x) @ state["embed_tokens.weight"].mT)
    for law in (laws.recurrent_equals_parallel, laws.chunked_equals_parallel, laws.ragged_prompts_are_read_together):
        law(model)


def test_what_is_wrong_with_a_checkpoint_is_listed(tmp_path: Path) -> None:
    state, _ = published("lm_softmax_chunk4_rotary")
    del state["decoder.layers.1.nffn.fc2.bias"]
    state["decoder.layers.1.mega_layer.h_proj.weight"] = torch.zeros(3, 3)
    state["decoder.extra"] = torch.zeros(1)
    save_file(state, tmp_path / "model.safetensors")
    config = CONFIGS["lm_softmax_chunk4_rotary"]
    with pytest.raises(InputError) as caught:
        load_published(tmp_path, config=config)
    for line in (
        "missing: layers.1.nffn.fc2.bias",
        "shape: layers.1.mega_layer.h_proj.weight is (3, 3)",
        "unknown: extra",
    ):
        assert line in str(caught.value)
    with pytest.raises(InputError, match="decoder_z_dim=7, but the tensors have 4"):
        load_published(tmp_path, config=config | {"decoder_z_dim": 7})
    with pytest.raises(InputError, match="adaptive_input=True"):
        load_published(tmp_path, config=config | {"adaptive_input": True})
