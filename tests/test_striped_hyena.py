"""What is particular to StripedHyena: its definition, how it starts, and published models of both generations."""

import json
from pathlib import Path
from typing import Any

import laws
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers import StripedHyena
from longreach.models.published import load_published
from longreach.models.published_striped_filter import build_filter, filter_rules
from longreach.models.published_striped_hyena import DEFAULTS, build, inner_size
from longreach.ops import attention, rotary
from longreach.ops.attention_mask import AttentionMask

GOLDEN = Path(__file__).parent / "golden" / "stripedhyena"


def response(mixer: StripedHyena, length: int) -> Tensor:
    """The taps from their definition, (d, l)."""
    if not mixer.modal:
        taps = F.pad(mixer.taps, (0, max(0, length - mixer.taps.shape[1])))[:, :length]
    else:
        pairs = mixer.log_poles.ndim == 3
        log_poles, residues = (torch.view_as_complex(p) if pairs else p for p in (mixer.log_poles, mixer.residues))
        powers = (log_poles[..., None] * torch.arange(length)).exp()
        taps = (residues[..., None] * powers).sum(1)
        taps = taps.real if pairs else taps
    return taps.repeat_interleave(mixer.d_model // len(taps), dim=0)


def definition(mixer: StripedHyena, x: Tensor) -> Tensor:
    """The equations of the module's docstring, with sums over all earlier positions; x is (l, d)."""
    length, width = len(x), mixer.short_width
    z = F.pad(F.linear(x, mixer.projections.weight, mixer.projections.bias).T, (width - 1, 0))
    z = sum(mixer.short_weight[:, j, None] * z[:, j : j + length] for j in range(width))
    z = z if mixer.short_bias is None else z + mixer.short_bias[:, None]
    after, before, value = z.chunk(3)
    u, taps = before * value, response(mixer, length)
    y = torch.stack([(taps[:, : t + 1].flip(1) * u[:, : t + 1]).sum(1) for t in range(length)], dim=1)
    y = after * (y if mixer.skip is None else y + mixer.skip[:, None] * u)
    return F.linear(y.T, mixer.out.weight, mixer.out.bias)


@pytest.mark.parametrize(
    "options",
    [
        {"d_state": 3, "n_filters": 3},
        {"filter": "real", "d_state": 2, "bias": False, "short_bias": False},
        {"filter": "explicit", "kernel_length": 4, "skip": False, "n_filters": 2, "short_width": 1},
    ],
    ids=lambda options: options.get("filter", "complex"),
)
def test_the_layer_is_what_its_equations_say(options: dict[str, Any]) -> None:
    mixer = StripedHyena(6, **options).double()
    if mixer.skip is not None:
        nn.init.normal_(mixer.skip)
    x = torch.randn(1, 11, 6, dtype=torch.float64)
    laws.equal(mixer(x)[0], definition(mixer, x[0]))


@pytest.mark.parametrize("kind", ["complex", "real"])
def test_modes_start_stable_and_remember(kind: Any) -> None:
    """The published start has poles near 0, whose filters are a single tap; these reach beyond 1,000 positions."""
    mixer = StripedHyena(256, filter=kind, d_state=4)
    decay = mixer.log_poles[..., 0] if kind == "complex" else mixer.log_poles
    assert (decay < 0).all()
    assert decay.max() > -2e-3
    assert decay.min() < -0.04
    kernel = mixer.kernel(4096)
    assert kernel[:, 1000:].abs().max() > 1e-4
    assert 0.1 < kernel.square().sum(1).sqrt().mean() < 10
    assert not mixer.optim_hints["log_poles"].weight_decay
    assert not mixer.skip.any()


def test_left_padding_is_invisible_to_forward() -> None:
    """Also when biases would fill it."""
    mixer = StripedHyena(8, d_state=3).double()
    x, mask = torch.randn(1, 12, 8, dtype=torch.float64), torch.arange(12)[None] >= 5
    x[~mask] = torch.nan
    laws.equal(mixer(x, mask)[:, 5:], mixer(x[:, 5:]))


def test_kernel_length_cuts_a_modal_filter() -> None:
    whole, cut = StripedHyena(4, d_state=3).double(), StripedHyena(4, d_state=3, kernel_length=5).double()
    cut.load_state_dict(whole.state_dict())
    laws.equal(cut.kernel(9), whole.kernel(9)[:, :5])


def test_long_float32_is_as_good_as_its_numbers() -> None:
    """At most four times as wrong as the exact layer is on an input and weights that are rounded to float32."""
    exact_mixer = StripedHyena(4).double()
    x = torch.randn(1, 16_384, 4, dtype=torch.float64)
    with torch.no_grad():
        exact = exact_mixer(x)
        single, rounded = StripedHyena(4), StripedHyena(4).double()
        single.load_state_dict(exact_mixer.state_dict())
        rounded.load_state_dict({name: tensor.float() for name, tensor in exact_mixer.state_dict().items()})
        allowed = 4 * laws.rms(rounded(x.float().double()).float() - exact)
        assert laws.rms(single(x.float()) - exact) <= allowed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_filters": 3}, "n_filters=3 must divide d_model=8"),
        ({"d_state": 0}, "d_state=0"),
        ({"short_width": 0}, "short_width=0"),
        ({"kernel_length": 0}, "kernel_length=0"),
        ({"filter": "explicit"}, "set kernel_length"),
    ],
)
def test_bad_options_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        StripedHyena(8, **arguments)
    assert message in str(caught.value)


def golden(case: str) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(GOLDEN / f"{case}.safetensors").items()}


def weights(case: str) -> dict[str, Tensor]:
    """The published state dict in a golden file."""
    return {name.removeprefix("param/"): tensor for name, tensor in golden(case).items() if name.startswith("param/")}


def agrees(model: Any, case: str) -> None:
    expected = golden(case)
    torch.testing.assert_close(model.eval()(expected["input_ids"]), expected["output"], rtol=1e-9, atol=1e-10)


CONFIG = {"num_attention_heads": 2, "eps": 1e-5, "inference_mode": False, "use_flash_attn": True, "model_name": "sh"}
"""What the tensors do not tell, and some of what does not matter."""


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("case", ["model_hyena_only", "model_with_attention"])
def test_published_models_are_loaded(tmp_path: Path, case: str, suffix: str) -> None:
    file = tmp_path / f"model{suffix}"
    save_file(weights(case), file) if suffix == ".safetensors" else torch.save(weights(case), file)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"attn_layer_idxs": [1, 3][: "attention" in case]}))
    model = load_published(file)
    agrees(model, case)
    laws.chunked_equals_parallel(model)
    laws.ragged_prompts_are_read_together(model)


def test_lists_of_layers_may_go_beyond_the_last(tmp_path: Path) -> None:
    """As in the config of the released 7B model."""
    save_file(weights("model_with_attention"), tmp_path / "model.safetensors")
    config = CONFIG | {"hyena_layer_idxs": [0, 2, 4], "attn_layer_idxs": [1, 3]}
    agrees(load_published(tmp_path, config=config), "model_with_attention")
    with pytest.raises(InputError, match=r"config: hyena_layer_idxs=\[0, 1\], but the tensors have \[0, 2\]"):
        load_published(tmp_path, config=CONFIG | {"hyena_layer_idxs": [0, 1]})


def test_the_embedding_can_be_the_output_projection(tmp_path: Path) -> None:
    state = weights("model_hyena_only")
    untied = state.pop("unembed.weight")
    save_file(state, tmp_path / "model.safetensors")
    model = load_published(tmp_path, config=CONFIG)
    assert model.head is None
    save_file(state | {"unembed.weight": untied}, tmp_path / "model.safetensors")
    assert load_published(tmp_path, config=CONFIG).head is not None
    assert load_published(tmp_path, config=CONFIG | {"tie_embeddings": True}).head is None


def test_all_that_is_wrong_is_listed_at_once(tmp_path: Path) -> None:
    state = weights("model_with_attention")
    del state["norm.scale"], state["blocks.2.filter.residues"]
    state["blocks.0.filter.D"] = torch.zeros(3)
    state["blocks.1.extra"] = torch.zeros(1)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as caught:
        load_published(tmp_path, config=CONFIG)
    assert sorted(line.strip().split(" is ")[0] for line in str(caught.value).splitlines()[1:]) == [
        "missing: blocks.2.filter.residues",
        "missing: norm.scale",
        "shape: blocks.0.filter.D",
        "unknown: blocks.1.extra",
    ]


def test_the_published_width_of_the_gated_mlp() -> None:
    assert inner_size(DEFAULTS | {"hidden_size": 4096}) == 10944
    assert inner_size(DEFAULTS | {"hidden_size": 8, "inner_size_multiple_of": 16, "model_parallel_size": 2}) == 32
    assert inner_size(DEFAULTS | {"hidden_size": 4096, "inner_mlp_size": 14336}) == 14336


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": None}, "eps missing"),
        ({"num_attention_heads": None}, "num_attention_heads missing"),
        ({"smeared_gqa": True}, "smeared_gqa=True (offered: False)"),
        ({"use_interpolated_rotary_pos_emb": True}, "use_interpolated_rotary_pos_emb=True"),
        ({"long_fir_threshold": 64}, "long_fir_threshold=64 (offered: None)"),
        ({"mlp_activation": "relu"}, "mlp_activation='relu'"),
        ({"hyena": 1}, "unknown option 'hyena'"),
        ({"hyena_layer_idxs": []}, "layer 0 is in none of"),
        ({"hyena_filter_groups": 2}, "hyena_filter_groups=2 with hidden_size=8 fails"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(change: dict[str, Any], message: str) -> None:
    sizes = {"hidden_size": 8, "vocab_size": 5, "num_layers": 1, "inner_mlp_size": 8, "hyena_layer_idxs": [0]}
    with pytest.raises(InputError) as caught:
        build(CONFIG | sizes | change, "stripedhyena")
    assert message in str(caught.value)
    with pytest.raises(InputError, match="num_attention_heads is missing"):
        build_filter({"hidden_size": 8}, "explicit", taps=3)


SECOND = {
    "hidden_size": 8, "vocab_size": 11, "num_layers": 4, "inner_mlp_size": 12, "num_attention_heads": 4, "eps": 1e-6,
    "proj_groups": 2, "hcs_layer_idxs": [0], "hcm_layer_idxs": [1], "hcl_layer_idxs": [2], "attn_layer_idxs": [3],
    "column_split_hyena": False, "interleave": True, "short_filter_bias": False, "qkv_proj_bias": False,
    "mha_out_proj_bias": True, "hyena_out_proj_bias": True, "tie_embeddings": True, "evo2_style_activations": True,
}  # fmt: skip
"""A StripedHyena 2 like Evo 2."""


def second() -> dict[str, Tensor]:
    """Random weights of such a model under their published names."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator) / shape[-1] ** 0.5

    state = {"embedding_layer.weight": random(11, 8), "norm.scale": random(8)}
    for i in range(4):
        block = {f"{name}_norm.scale": 1 + random(8) for name in ("pre", "post")}
        block |= {"mlp.l1.weight": random(12, 8), "mlp.l2.weight": random(12, 8), "mlp.l3.weight": random(8, 12)}
        if i == 3:
            block |= {f"inner_mha_cls.{name}": random(*shape) for name, shape in
                      {"Wqkv.weight": (16, 8), "out_proj.weight": (8, 8), "out_proj.bias": (8,),
                       "rotary_emb.inv_freq": (1,)}.items()}  # fmt: skip
        else:
            block |= {"projections.weight": random(24, 8), "filter.short_filter_weight": random(24, 1, 3)}
            block |= {"out_filter_dense.weight": random(8, 8), "out_filter_dense.bias": random(8)}
        block |= [
            {"filter.h": random(2, 1, 7)},
            {"filter.h": random(4, 1, 128), "filter.D": random(8)},
            {"filter.log_poles": -random(8, 3, 1).abs(), "filter.residues": random(8, 3), "filter.D": random(8)},
            {},
        ][i]
        state |= {f"blocks.{i}.{name}": tensor for name, tensor in block.items()}
    return state


def published(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """What vortex computes with these weights, from a reading of its code."""
    x = state["embedding_layer.weight"][tokens]
    length = x.shape[1]

    def norm(x: Tensor, scale: Tensor) -> Tensor:
        return scale * x / (x.norm(dim=-1, keepdim=True) / 8**0.5 + 1e-6)

    for i in range(4):
        w = {name.removeprefix(f"blocks.{i}."): tensor for name, tensor in state.items() if f"blocks.{i}." in name}
        u = norm(x, w["pre_norm.scale"])
        if i == 3:
            heads = (u @ w["inner_mha_cls.Wqkv.weight"].T).unflatten(-1, (8, 2)).transpose(1, 2)
            query, key, value = heads.split((4, 2, 2), dim=1)
            position = torch.arange(length)
            query, key = (rotary(turned, position, base=1e6) for turned in (query, key))
            y = attention(query, key, value, AttentionMask(True, None, None)).transpose(1, 2).flatten(2)
            x = x + y @ w["inner_mha_cls.out_proj.weight"].T + w["inner_mha_cls.out_proj.bias"]
        else:
            z = (u @ w["projections.weight"].T).mT
            z = F.conv1d(z, w["filter.short_filter_weight"], padding=2, groups=24)[..., :length]
            x2, x1, v = (z[:, j::3] for j in range(3))
            if i == 0:
                h = w["filter.h"][:, 0].flip(-1).repeat_interleave(4, 0)
            elif i == 1:
                h = w["filter.h"][:, 0].repeat_interleave(2, 0)
            else:
                h = (w["filter.residues"][..., None] * (w["filter.log_poles"] * torch.arange(length)).exp()).sum(1)
            y = F.conv1d(x1 * v, h[:, None].flip(-1), padding=h.shape[-1] - 1, groups=8)[..., :length]
            y = y if i == 0 else y + w["filter.D"][:, None] * x1 * v
            x = x + (x2 * y).mT @ w["out_filter_dense.weight"].T + w["out_filter_dense.bias"]
        u = norm(x, w["post_norm.scale"])
        gate = u @ w["mlp.l1.weight"].T
        x = x + ((F.gelu(gate) if i == 0 else gate) * (u @ w["mlp.l2.weight"].T)) @ w["mlp.l3.weight"].T
    return norm(x, state["norm.scale"]) @ state["embedding_layer.weight"].T


def test_the_second_generation_is_loaded(tmp_path: Path) -> None:
    state, tokens = second(), torch.randint(11, (2, 20))
    save_file(state, tmp_path / "model.safetensors")
    told = ("num_attention_heads", "eps", "column_split_hyena", "interleave", "evo2_style_activations")
    model = load_published(tmp_path, config={name: SECOND[name] for name in told})
    laws.equal(model(tokens), published(state, tokens))
    laws.recurrent_equals_parallel(model.eval())
    assert load_published(tmp_path, config=SECOND).backbone.blocks[3].mixer.n_kv_heads == 2


def test_gates_can_be_exchanged() -> None:
    """x2 and x1, in the published code's order of channels."""
    config = {"hidden_size": 4, "num_attention_heads": 2, "hyena_filter_groups": 4}

    def order(**options: bool) -> list[int]:
        mixer = build_filter(config | options, "real")
        return filter_rules(mixer, config | options)[0].view(torch.arange(12)).tolist()

    assert order() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]
    assert order(column_split_hyena=False) == list(range(12))
    assert order(column_split_hyena=False, interleave=True) == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    assert order(column_split_hyena=False, hyena_flip_x1x2=True) == [4, 5, 6, 7, 0, 1, 2, 3, 8, 9, 10, 11]
