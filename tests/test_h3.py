"""What is particular to H3: its definition, how it starts, its options, and published models."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import laws
import pytest
import torch
from jsonargparse import ArgumentParser
from safetensors.torch import load_file, save_file
from torch import Tensor

from longreach.errors import InputError
from longreach.mixers import H3, H3Options
from longreach.models import MLP, Backbone, LanguageModel
from longreach.models.published import load_published
from longreach.models.published_h3 import build_h3, h3_rules
from longreach.models.published_h3_release import _older
from longreach.ops import use_backend

GOLDEN = Path(__file__).parent / "golden" / "h3_lm"


def definition(mixer: H3, x: Tensor) -> Tensor:
    """The equations of the module's docstring, position by position, with dense transition matrices; x is (l, d)."""
    width, d_state = mixer.head_dim, mixer.shift_B.shape[1]
    query, key, value = (x @ mixer.qkv.weight.T + mixer.qkv.bias).chunk(3, dim=1)
    down = torch.diag(torch.ones(d_state - 1), -1).double()
    dt, heads = mixer.log_dt.exp(), mixer.d_model // width
    A = torch.complex(-mixer.A_real.exp(), -mixer.A_imag)
    B, C = torch.view_as_complex(mixer.B), torch.view_as_complex(mixer.C)
    shift = torch.zeros(mixer.d_model, d_state, dtype=torch.float64)
    memory = torch.zeros(heads, width, width, A.shape[1], dtype=torch.complex128)
    outputs = []
    for q, k, v in zip(query, key, value, strict=True):
        shift = shift @ down.T + mixer.shift_B * k[:, None]
        k = (mixer.shift_C * shift).sum(1) + mixer.shift_D * k
        pairs = k.view(heads, width, 1) * v.view(heads, 1, width)
        half = (A * dt[:, None] / 2)[:, None, None]
        memory = ((1 + half) * memory + (dt[:, None] * B)[:, None, None] * pairs[..., None]) / (1 - half)
        y = 2 * (C[:, None, None] * memory).sum(-1).real + mixer.D[:, None, None] * pairs
        outputs.append((q.view(heads, width, 1) * y).sum(1).flatten())
    return torch.stack(outputs) @ mixer.out.weight.T + mixer.out.bias


@pytest.mark.parametrize("head_dim", [1, 3])
def test_the_layer_is_what_its_equations_say(head_dim: int) -> None:
    mixer = H3(6, d_state=4, head_dim=head_dim, dt_min=0.2, dt_max=0.9).double()
    x = torch.randn(1, 9, 6, dtype=torch.float64)
    laws.equal(mixer(x)[0], definition(mixer, x[0]))


def test_a_shift_by_one_pairs_every_value_with_the_key_before_it() -> None:
    mixer = H3(4, d_state=4).double()
    with torch.no_grad():
        mixer.shift_C.zero_()[:, 1] = 1
    expected = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64).expand(4, 4)
    laws.equal(mixer.shift_kernel(), expected)


@pytest.mark.parametrize(
    ("init", "frequency"),
    [
        ("lin", lambda n: math.pi * n),
        ("inv", lambda n: 8 / math.pi * (8 / (2 * n + 1) - 1)),
        ("inv2", lambda n: 8 / math.pi * (8 / (n + 1) - 1)),
        ("quad", lambda n: (2 * n + 1) ** 2 / math.pi),
        ("real", lambda n: 0 * n),
    ],
)
def test_start(init: Any, frequency: Any) -> None:
    mixer = H3(64, d_state=8, init=init, dt_min=0.01, dt_max=0.5)
    n = torch.arange(4.0)
    decay = n + 1 if init == "real" else torch.full((4,), 0.5)
    torch.testing.assert_close(mixer.A_real.exp(), decay.expand(64, 4))
    torch.testing.assert_close(mixer.A_imag.detach(), frequency(n).expand(64, 4))
    assert (torch.tensor([1.0, 0.0]) == mixer.B).all()
    assert (mixer.shift_B == torch.eye(8)[0]).all()
    assert mixer.shift_C.abs().max() <= 8**-0.5
    assert mixer.shift_C.std().item() == pytest.approx((8 * 3) ** -0.5, rel=0.1)
    position = (mixer.log_dt - math.log(0.01)) / math.log(50)
    assert 0 <= position.min() < 0.1 < 0.9 < position.max() <= 1


def test_a_mixture_starts_half_inv_and_half_lin() -> None:
    mixture = H3(4, d_state=8, init="diag").A_imag
    assert torch.equal(mixture, torch.cat([H3(2, d_state=8, init="inv").A_imag, H3(2, d_state=8).A_imag]))


def test_dynamics_have_their_learning_rate_and_do_not_decay() -> None:
    model = LanguageModel(5, Backbone(4, n_layers=1, mixers=[lambda d: H3(d, d_state=4, lr=1e-3)], channel_mixer=MLP))
    hints = {name.rpartition(".")[2]: hint for name, hint in model.optim_hints().items()}
    assert set(hints) == {"log_dt", "A_real", "A_imag", "B", "shift_B"}
    assert {(hint.lr, hint.lr_scale, hint.weight_decay) for hint in hints.values()} == {(1e-3, 1.0, False)}
    assert H3(4, d_state=4).optim_hints["B"].lr is None


def test_kernel_length_cuts_both_filters() -> None:
    options = {"d_state": 8, "dt_min": 0.1}
    whole, cut = H3(4, **options).double(), H3(4, **options, options=H3Options(kernel_length=3)).double()
    cut.load_state_dict(whole.state_dict())
    laws.equal(cut.shift_kernel(), whole.shift_kernel()[:, :3])
    laws.equal(cut.kernel(9), whole.kernel(9)[:, :3])
    x = torch.randn(1, 9, 4, dtype=torch.float64)
    laws.equal(cut(x[:, :3]), whole(x[:, :3]))
    assert not torch.allclose(cut(x)[:, 4:], whole(x)[:, 4:])


def test_bandlimit_silences_fast_modes() -> None:
    mixer = H3(2, d_state=8, dt_min=0.2, dt_max=0.2, options=H3Options(bandlimit=0.5)).double()
    with torch.no_grad():
        kept = torch.tensor([True, True, True, False])  # pi n 0.2 < 0.5 pi
        expected = H3(2, d_state=8, dt_min=0.2, dt_max=0.2).double()
        expected.load_state_dict(mixer.state_dict())
        expected.C *= kept[:, None]
    laws.equal(mixer.kernel(7), expected.kernel(7))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_dim": 3}, "head_dim=3 must divide d_model=8"),
        (
            {"head_dim": 2, "options": H3Options(n_ssm=3)},
            "n_ssm=3 must divide the number of heads, d_model / head_dim = 4",
        ),
        ({"dt_min": 0.0}, "dt_min=0.0"),
        ({"dt_min": 0.2, "dt_max": 0.1}, "dt_max=0.1"),
        ({"d_state": 5}, "d_state=5 must be even"),
        ({"d_state": 0}, "d_state=0 must be even and positive"),
        ({"options": H3Options(kernel_length=0)}, "kernel_length=0"),
        ({"init": "diag", "options": H3Options(n_ssm=1)}, "multiple of 2"),
        ({"init": "real", "options": H3Options(real_transform="sigmoid")}, "real_transform='sigmoid' cannot give"),
    ],
)
def test_bad_options_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        H3(8, **arguments)
    assert message in str(caught.value)


def test_long_float32_is_as_good_as_its_numbers() -> None:
    """At most twice as wrong as the same layer is in float32 on torch's own transforms and sums."""
    mixer = H3(4, d_state=16)
    x = torch.randn(1, 16_384, 4)
    with torch.no_grad():
        exact = copy.deepcopy(mixer).double()(x.double())
        with use_backend(long_conv="fft", vandermonde="blocked"):
            allowed = 2 * laws.rms(mixer(x) - exact)
        assert laws.rms(mixer(x) - exact) <= allowed
        assert allowed < 1e-5 * laws.rms(exact)


def test_float32_knows_the_decay_of_fast_modes() -> None:
    """Under the bilinear rule log abar of a fast mode has a tiny real part, which decides what is left after long."""
    single = H3(64, d_state=64, init="inv")
    double = H3(64, d_state=64, init="inv").double()
    double.load_state_dict(single.state_dict())
    torch.testing.assert_close(
        single._system().log_abar.real.double(), double._system().log_abar.real, rtol=1e-5, atol=0.0
    )


def test_padding_of_nan_stays_where_it_is() -> None:
    mixer = H3(4, d_state=4, options=H3Options(kernel_length=3))
    x, mask = torch.randn(2, 6, 4), torch.tensor([[False, False, True, True, False, True], [True] * 6])
    x[~mask] = torch.nan
    assert mixer(x, mask)[mask].isfinite().all()
    y, state = mixer.prefill(x, mixer.init_state(2), mask)
    assert y[mask].isfinite().all()
    assert all(leaf.isfinite().all() for leaf in state)


def test_left_padding_is_invisible_to_forward() -> None:
    """Also when biases would fill it."""
    mixer = H3(8, d_state=4, dt_min=0.1).double()
    x, mask = torch.randn(1, 12, 8, dtype=torch.float64), torch.arange(12)[None] >= 5
    x[~mask] = torch.nan
    laws.equal(mixer(x, mask)[:, 5:], mixer(x[:, 5:]))


def test_the_constructor_is_a_schema() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(H3, "mixer")
    config = {"d_model": 4, "d_state": 8, "init": "inv", "options": {"kernel_length": 7, "n_ssm": 2}}
    mixer = parser.instantiate(parser.parse_object({"mixer": config})).mixer
    assert (mixer.taps, len(mixer.A_real), mixer.options.bandlimit) == (7, 2, None)


def golden(case: str) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(GOLDEN / f"{case}.safetensors").items()}


def weights(case: str) -> dict[str, Tensor]:
    """The published state dict in a golden file."""
    return {name.removeprefix("param/"): tensor for name, tensor in golden(case).items() if name.startswith("param/")}


def agrees(model: Any, case: str) -> None:
    expected = golden(case)
    torch.testing.assert_close(model.eval()(expected["input_ids"]), expected["output"], rtol=1e-9, atol=1e-10)


CONFIG = {"attn_cfg": {"num_heads": 2}, "ssm_cfg": {"mode": "diag", "measure": "diag-lin"}}
"""What the tensors do not tell of a hybrid."""


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_published_models_are_loaded(tmp_path: Path, suffix: str) -> None:
    state = weights("h3_lm_hybrid")
    file = tmp_path / f"model{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    model = load_published(file)
    agrees(model, "h3_lm_hybrid")
    laws.recurrent_equals_parallel(model)
    laws.ragged_prompts_are_read_together(model)


@pytest.mark.parametrize(
    ("name", "after", "before"),
    [
        ("backbone.embeddings.word_embeddings.weight", "embedding.weight", "embedding.weight"),
        ("backbone.layers.0.norm1.bias", "s4seq.encoder.ln_0.bias", "s4seq.encoder.layers.0.norm1.bias"),
        ("backbone.layers.2.norm1.bias", "s4seq.encoder.layers.1.norm2.bias", "s4seq.encoder.layers.2.norm1.bias"),
        ("backbone.layers.2.norm2.bias", "s4seq.encoder.layers.2.norm1.bias", "s4seq.encoder.layers.2.norm2.bias"),
        ("backbone.ln_f.weight", "s4seq.encoder.layers.2.norm2.weight", "s4seq.encoder.norm.weight"),
        ("backbone.layers.2.mixer.D", "s4seq.encoder.layers.2.mixer.D", "s4seq.encoder.layers.2.mixer.D"),
    ],
)
def test_older_names(name: str, after: str, before: str) -> None:
    assert _older(name, 2, norms_after=True) == after
    assert _older(name, 2, norms_after=False) == before


@pytest.mark.parametrize("norms_after", [True, False])
@pytest.mark.parametrize("case", ["h3_lm_hybrid", "h3_lm_pure_L9"])
def test_released_models_have_older_names(tmp_path: Path, case: str, norms_after: bool) -> None:
    last = {"h3_lm_hybrid": 2, "h3_lm_pure_L9": 1}[case]
    state = {_older(name, last, norms_after=norms_after): tensor for name, tensor in weights(case).items()}
    assert ("s4seq.encoder.ln_0.weight" in state) == norms_after
    assert f"s4seq.encoder.layers.{last}.norm2.bias" in state
    state["lm_head.weight"] = state["embedding.weight"].clone()
    torch.save(state, tmp_path / "model.pt")
    agrees(load_published(tmp_path / "model.pt", config=CONFIG), case)
    del state["s4seq.encoder.layers.1.norm2.bias"]
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"missing: s4seq\.encoder\.layers\.1\.norm2\.bias"):
        load_published(tmp_path / "model.pt", config=CONFIG)


def test_all_that_is_wrong_is_listed_at_once(tmp_path: Path) -> None:
    state = weights("h3_lm_pure_L9")
    del state["backbone.layers.1.mixer.v_proj.weight"]
    state["backbone.layers.0.mixer.ssm_k_D"] = torch.zeros(3)
    state["backbone.layers.0.mixer.extra"] = torch.zeros(1)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as caught:
        load_published(tmp_path)
    assert [line.strip().split(" is ")[0] for line in str(caught.value).splitlines()[1:]] == [
        "shape: backbone.layers.0.mixer.ssm_k_D",
        "missing: backbone.layers.1.mixer.v_proj.weight",
        "unknown: backbone.layers.0.mixer.extra",
    ]
    with pytest.raises(InputError, match=r"ssm_cfg\.d_state=64, but the tensors have 8"):
        load_published(tmp_path, config={"ssm_cfg": {"d_state": 64}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "ema"}, "mode='ema' (offered: 'diag')"),
        ({"disc": "dss"}, "disc='dss'"),
        ({"real_type": "cube"}, "real_type='cube'"),
        ({"hidden": 3}, "unknown option 'hidden'"),
    ],
)
def test_published_options_that_are_not_offered_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        build_h3({"d_model": 4} | options)
    assert message in str(caught.value)


def test_the_fused_kernel_orders_the_values_of_a_head_differently() -> None:
    config = {"d_model": 6, "d_state": 4, "head_dim": 2}
    mixer = build_h3(config)
    weight = torch.arange(36.0).view(6, 6)

    def loaded(**options: bool) -> Tensor:
        rules = {rule.ours: rule for rule in h3_rules(mixer, config | options)}
        return rules["out.weight"].view(weight)

    assert torch.equal(loaded(use_fast_fftconv=True), weight)
    assert torch.equal(loaded(), weight[:, [0, 3, 1, 4, 2, 5]])  # (f h) -> (h f)
