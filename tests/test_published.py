"""Published checkpoints become models of ours, or are refused with everything that is wrong in one message."""

import json
from pathlib import Path
from typing import Any

import laws
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers import Attention, FilterOptions, Hyena
from longreach.models import MLP, Backbone
from longreach.models.classifier import Classifier
from longreach.models.learned_positions import LearnedPositions
from longreach.models.published import load_published, read_tensors

GOLDEN = Path(__file__).parent / "golden" / "hyena_lm"
EMBEDDING = "backbone.embeddings.word_embeddings.weight"


def golden(case: str) -> dict[str, Tensor]:
    """The tensors of a golden file."""
    return {name: tensor.clone() for name, tensor in load_file(GOLDEN / f"{case}.safetensors").items()}


def weights(case: str) -> dict[str, Tensor]:
    """The published state dict in a golden file, as it would be saved."""
    return {n.removeprefix("param/"): t for n, t in golden(case).items() if n.startswith("param/")}


def write(folder: Path, state: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    """A folder as published models come in."""
    save_file(state, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def agrees(model: nn.Module, case: str) -> None:
    expected = golden(case)
    torch.testing.assert_close(model.eval()(expected["input_ids"]), expected["output"], rtol=1e-9, atol=1e-10)


def test_structure_is_read_off_the_shapes(tmp_path: Path) -> None:
    model = load_published(write(tmp_path, weights("lm_hyena_o2")))
    agrees(model, "lm_hyena_o2")
    assert (model.vocab_size, model.max_length, len(model.backbone.blocks)) == (16, 16, 2)
    mixer = model.backbone.blocks[0].mixer
    assert (mixer.filter.options.width, mixer.filter.options.embedding_dim, mixer.order) == (8, 5, 2)


@pytest.mark.parametrize(
    "config", [{"attn_cfg": {"num_heads": 2}}, {"attn_cfg": {"num_heads": 2}, "n_layer": 3, "attn_layer_idx": [1]}]
)
def test_config_tells_what_shapes_do_not(tmp_path: Path, config: dict[str, Any]) -> None:
    agrees(load_published(write(tmp_path, weights("lm_hyena_o3_hybrid_attn"), config)), "lm_hyena_o3_hybrid_attn")


def test_config_can_be_given(tmp_path: Path) -> None:
    folder = write(tmp_path, weights("lm_hyena_o3_hybrid_attn"), {"attn_cfg": {"num_heads": 4}})
    agrees(load_published(folder, config={"attn_cfg": {"num_heads": 2}}), "lm_hyena_o3_hybrid_attn")


def test_the_standalone_variant_orders_and_shifts_filters_differently(tmp_path: Path) -> None:
    folder = write(tmp_path, weights("dna_head_L10_o3"))
    model = load_published(folder, variant="standalone")
    assert isinstance(model, Classifier)
    agrees(model, "dna_head_L10_o3")
    with pytest.raises(AssertionError):
        agrees(load_published(folder), "dna_head_L10_o3")
    with pytest.raises(InputError, match="variant='other'"):
        load_published(folder, variant="other")


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "prefix", "tied head"])
def test_files_of_torch_and_wrapped_names(tmp_path: Path, wrap: str) -> None:
    state: Any = weights("lm_hyena_o2")
    if wrap == "state_dict":
        state = {"state_dict": state, "epoch": 3}
    if wrap == "prefix":
        state = {f"model.{name}": tensor for name, tensor in state.items()}
    if wrap == "tied head":
        state["lm_head.weight"] = state[EMBEDDING].clone()
    torch.save(state, tmp_path / "weights.ckpt")
    agrees(load_published(tmp_path / "weights.ckpt"), "lm_hyena_o2")


def test_float32_stays_float32(tmp_path: Path) -> None:
    state = {name: tensor.float() for name, tensor in weights("lm_hyena_o2").items()}
    model = load_published(write(tmp_path, state))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_loaded_model_generates(tmp_path: Path) -> None:
    laws.chunked_equals_parallel(load_published(write(tmp_path, weights("lm_hyena_o2"))).eval())
    folder = write(tmp_path, weights("lm_hyena_o3_hybrid_attn"), {"attn_cfg": {"num_heads": 2}})
    laws.recurrent_equals_parallel(load_published(folder).eval())


def refused(folder: Path, **options: Any) -> list[str]:
    """The lines of the message with which a checkpoint is refused."""
    with pytest.raises(InputError) as caught:
        load_published(folder, **options)
    return str(caught.value).splitlines()


def test_all_that_is_wrong_is_listed_at_once(tmp_path: Path) -> None:
    state = weights("lm_hyena_o2")
    del state["backbone.ln_f.bias"]
    state["backbone.layers.1.mlp.fc2.weight"] = torch.zeros(3, 2)
    state["backbone.layers.0.mixer.extra"] = torch.zeros(1)
    state["lm_head.weight"] = state[EMBEDDING] + 1
    state["backbone.layers.1.mixer.filter_fn.implicit_filter.3.freq"] = torch.zeros(1, 8).double()
    first, *lines = refused(write(tmp_path, state))
    assert "model.safetensors was not loaded" in first
    assert [line.split(" is ")[0].split(" differs")[0].strip() for line in lines] == [
        "missing: backbone.ln_f.bias",
        "shape: backbone.layers.1.mlp.fc2.weight",
        "not tied: lm_head.weight",
        "not tied: backbone.layers.1.mixer.filter_fn.implicit_filter.3.freq",
        "unknown: backbone.layers.0.mixer.extra",
    ]


def test_missing_structure_is_listed(tmp_path: Path) -> None:
    state = weights("lm_hyena_o2")
    del state["backbone.layers.1.mixer.in_proj.weight"]
    state["backbone.layers.0.mixer.short_filter.weight"] = torch.zeros(24)
    _, *lines = refused(write(tmp_path, state))
    assert [line.split(",")[0].strip() for line in lines] == [
        "missing: backbone.layers.1.mixer.in_proj.weight",
        "shape: backbone.layers.0.mixer.short_filter.weight is (24",
    ]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_layer": 3}, "n_layer=3, but the tensors have 2"),
        ({"vocab_size": 11}, "vocab_size=11, but the tensors have 16"),
        ({"layer": {"order": 3}}, "layer.order=3, but the tensors have 2"),
        ({"use_head": True}, "use_head=True, but the tensors have False"),
        ({"layer": {"colour": 1}}, "unknown option 'colour'"),
        ({"depth": 1}, "unknown option 'depth'"),
        ({"layer": {"num_heads": 2}}, "num_heads=2 (offered: 1)"),
        ({"layer": {"activation": "glu"}}, "activation='glu'"),
        ({"identity_mlp": True}, "identity_mlp=True (offered: False)"),
    ],
)
def test_a_config_at_odds_with_the_tensors_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    folder = write(tmp_path, weights("lm_hyena_o2"), config)
    assert message in "\n".join(refused(folder))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "attn_cfg.num_heads is missing"),
        ({"attn_cfg": {"num_heads": 2, "rotary_emb_dim": 2}}, "rotary_emb_dim=2"),
        ({"attn_cfg": {"num_heads": 2, "dwconv": True}}, "dwconv=True (offered: False)"),
        ({"attn_cfg": {"heads": 2}}, "unknown option 'heads'"),
    ],
)
def test_attention_that_is_not_offered_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    assert message in "\n".join(refused(write(tmp_path, weights("lm_hyena_o3_hybrid_attn"), config)))


def test_options_without_effect_are_accepted(tmp_path: Path) -> None:
    """The config that HyenaDNA's smallest model is published with, in the sizes of this one."""
    layer = {"_name_": "hyena", "emb_dim": 5, "filter_order": 8, "short_filter_order": 3, "l_max": 16, "modulate": True}
    config = {
        "d_model": 8, "n_layer": 2, "d_inner": 32, "vocab_size": 12, "resid_dropout": 0.0, "embed_dropout": 0.1,
        "fused_mlp": False, "fused_dropout_add_ln": True, "residual_in_fp32": True, "pad_vocab_size_multiple": 8,
        "return_hidden_state": True, "layer": layer | {"w": 10, "lr": 6e-4, "wd": 0.0, "lr_pos_emb": 0.0},
    }  # fmt: skip
    model = load_published(write(tmp_path, weights("dna_hidden_L14"), config), variant="standalone").eval()
    expected = golden("dna_hidden_L14")
    torch.testing.assert_close(model.hidden(expected["input_ids"]), expected["output"], rtol=1e-9, atol=1e-10)
    assert model.dropout.p == 0.1
    options = model.backbone.blocks[0].mixer.filter.options
    assert (options.lr, options.features_lr, options.sine_frequency, options.shift) == (6e-4, 0.0, 10.0, 0.05)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    damaged = write(tmp_path, weights("lm_hyena_o2")) / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    torch.save(weights("lm_hyena_o2"), whole := tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:-1000])
    (tmp_path / "text.pt").write_text("not a checkpoint at all")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save(nn.Linear(2, 2), tmp_path / "object.pt")
    torch.save({"step": 3}, tmp_path / "numbers.pt")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name in ("model.safetensors", "cut.pt", "text.pt", "empty.pt", "object.pt", "numbers.pt", "other.safetensors"):
        assert str(tmp_path / name) in refused(tmp_path / name)[0]
    assert "cannot be read" in refused(tmp_path / "absent.safetensors")[0]
    assert "holds 2 files of weights" in refused(tmp_path)[0]
    with pytest.raises(InputError, match="safetensors"):
        read_tensors(tmp_path / "object.pt")


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_broken_config_is_named(tmp_path: Path, content: str) -> None:
    write(tmp_path, weights("lm_hyena_o2"))
    (tmp_path / "config.json").write_text(content)
    assert "config.json" in refused(tmp_path)[0]


def positioned(length: int = 64) -> LearnedPositions:
    mixers = [lambda d: Hyena(d, max_length=50, filter=FilterOptions(width=6)), lambda d: Attention(d, n_heads=2)]
    return LearnedPositions(Backbone(8, n_layers=2, mixers=mixers, channel_mixer=MLP), length=length, dropout=0.2)


@pytest.mark.parametrize("law", laws.laws_of(positioned()), ids=lambda law: law.__name__)
def test_learned_positions_obey_the_laws(law) -> None:
    law(positioned().double().eval())


def test_the_shorter_of_positions_and_filters_is_the_limit() -> None:
    assert positioned().max_length == 50
    laws.refuses_what_is_too_long(positioned(length=20).double().eval())
    with pytest.raises(InputError, match="length=0"):
        positioned(length=0)
