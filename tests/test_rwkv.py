"""RWKV as a whole: the stack in all versions, what it starts from, how it trains, and the authors' checkpoints."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import laws
import pytest
import torch
from safetensors.torch import load_file
from test_mixers import shaken
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers import RWKV4, RWKV5, RWKV6, RWKV7, RWKVChannelMix
from longreach.models import load_published
from longreach.models.published_layout import assemble
from longreach.models.published_rwkv import build, rules
from longreach.models.rwkv import RWKV, RWKVLanguageModel, RWKVOptions, largest_logits

GOLDEN = Path(__file__).parent / "golden"
SIZES: dict[int, RWKVOptions] = {
    4: RWKVOptions(d_inner=12),
    5: RWKVOptions(d_attention=12, head_dim=3, divisor=2.0),
    6: RWKVOptions(d_attention=4, head_dim=2, divisor=3.0, share_rank=3, decay_rank=2),
    7: RWKVOptions(head_dim=4, decay_rank=3, rate_rank=2, gate_rank=5, value_rank=3),
}


def stack(version: Any, *, n_layers: int = 2, **options: Any) -> RWKV:
    return RWKV(8, n_layers=n_layers, version=version, options=SIZES[version], **options)


STACKS = {
    **{f"version {version}": lambda version=version: stack(version) for version in SIZES},
    "channel first": lambda: stack(4, channel_first=True),
    "channel first, version 6": lambda: stack(6, channel_first=True),
}


def shaken_stack(name: str) -> Any:
    """The stack of a name, ready for the laws."""
    torch.manual_seed(0)
    return shaken(STACKS[name]())


@pytest.mark.parametrize(
    ("name", "law"),
    [(name, law) for name in STACKS for law in laws.laws_of(shaken_stack(name), finite_state=True)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_law(name: str, law: Any) -> None:
    law(shaken_stack(name))


def test_recomputing_changes_no_gradient() -> None:
    for version in SIZES:
        gradients = []
        for recompute in (False, True):
            torch.manual_seed(0)
            model = shaken(stack(version, recompute=recompute))
            x = laws.random_input(model).requires_grad_()
            gradients.append(torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()]))
        for plain, recomputed in zip(*gradients, strict=True):
            laws.equal(recomputed, plain)


def test_the_values_of_the_first_layer_reach_all_others() -> None:
    """With residuals that take everything from the first layer, the value maps of the others have no effect."""
    model: Any = shaken(stack(7, n_layers=3))
    x = laws.random_input(model)
    with torch.no_grad():
        for later in model.layers[1:]:
            later.value_residual.start.fill_(100.0)
        before = model(x)
        for later in model.layers[1:]:
            later.time.value.weight.mul_(2)
        laws.equal(model(x), before)
        model.layers[0].time.value.weight.mul_(2)
    assert not torch.allclose(model(x), before)


# What training starts from, against the published formulas written out channel by channel.


def close(actual: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual.flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_version_4_starts_as_published(layer: int) -> None:
    d, n = 6, 3
    mixer, up, down = RWKV4(d, layer=layer, n_layers=n), layer / (n - 1), 1 - layer / n
    close(mixer.share_key, [(i / d) ** down for i in range(d)])
    close(mixer.share_value, [(i / d) ** down + 0.3 * up for i in range(d)])
    close(mixer.share_receptance, [(i / d) ** (0.5 * down) for i in range(d)])
    close(mixer.time_decay, [-5 + 8 * (i / (d - 1)) ** (0.7 + 1.3 * up) for i in range(d)])
    close(mixer.time_first, [math.log(0.3) + 0.5 * ((i + 1) % 3 - 1) for i in range(d)])
    assert not any(linear.weight.any() for linear in (mixer.key, mixer.receptance, mixer.out))
    is_orthogonal(mixer.value, 1.0)


def is_orthogonal(linear: nn.Linear, gain: float) -> None:
    """All singular values of the weight are `gain`."""
    singular = torch.linalg.svdvals(linear.weight.detach())
    torch.testing.assert_close(singular, torch.full_like(singular, gain))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_versions_5_and_6_start_as_published(layer: int) -> None:
    d, n = 6, 3
    up, down = layer / (n - 1), 1 - layer / n
    fifth = RWKV5(d, head_dim=3, layer=layer, n_layers=n)
    sixth = RWKV6(d, head_dim=3, layer=layer, n_layers=n)
    key, half = [(i / d) ** down for i in range(d)], [(i / d) ** (0.5 * down) for i in range(d)]
    value = [share + 0.3 * up for share in key]
    shares = [fifth.share_key, fifth.share_value, fifth.share_receptance, fifth.share_gate]
    for share, expected in zip(shares, (key, value, half, half), strict=True):
        close(share, expected)
    close(sixth.shares, [*key, *key, *value, *half, *half])
    close(sixth.share, key)
    for mixer in (fifth, sixth):
        close(mixer.time_decay, [-6 + 5 * (i / (d - 1)) ** (0.7 + 1.3 * up) for i in range(d)])
        close(mixer.bonus, [up * (1 - i / (d - 1)) + 0.1 * ((i + 1) % 3 - 1) for i in range(d)])
        close(mixer.norm.weight, [((1 + layer) / n) ** 0.7] * d)
        is_orthogonal(mixer.receptance, 1.0)
        is_orthogonal(mixer.value, 1.0)
        is_orthogonal(mixer.key, 0.1)
        is_orthogonal(mixer.gate, 0.1)
        assert not mixer.out.weight.any()
    assert (sixth.share_down.shape[2], sixth.decay_down.shape[1], sixth.norm.eps) == (32, 64, 64e-5)
    for start, end in ((sixth.share_down, sixth.share_up), (sixth.decay_down, sixth.decay_up)):
        assert not start.any()
        assert 0.005 < end.abs().max() <= 0.01


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_version_7_starts_as_published(layer: int) -> None:
    d, n, size = 6, 3, 3
    mixer, up, down = RWKV7(d, head_dim=size, layer=layer, n_layers=n), layer / (n - 1), 1 - layer / n
    close(mixer.shares, [(i / d) ** (power * down) for power in (0.2, 0.9, 0.7, 0.7, 0.9, 0.2) for i in range(d)])
    slope = [i / (d - 1) - 0.5 for i in range(d)]
    bend = [(i % size - 1) * abs(i % size - 1) for i in range(d)]
    speed = [-6 + 6 * (i / (d - 1)) ** (1 + up**0.3) for i in range(d)]
    close(mixer.decay, [s + 0.5 + 2.5 * b for s, b in zip(speed, bend, strict=True)])
    close(mixer.rate, [-0.19 + 0.3 * b + 0.4 * s for s, b in zip(slope, bend, strict=True)])
    close(mixer.removal, [0.71 - 0.1 * s for s in slope])
    close(mixer.rewrite, [1.02] * d)
    close(mixer.bonus, [-0.04] * d)
    close(mixer.norm.weight, [((1 + layer) / n) ** 0.7] * d)
    assert not any(x.any() for x in (mixer.decay_down, mixer.rate_down, mixer.gate_down, mixer.out.weight))
    for linear, bound in ((mixer.receptance, 0.5), (mixer.key, 0.05), (mixer.value, 0.5)):
        assert 0.5 * bound < linear.weight.abs().max() * d**0.5 <= bound


def test_ranks_are_those_that_the_authors_suggest() -> None:
    mixer = RWKV7(1024)
    assert [x.shape[1] for x in (mixer.decay_down, mixer.rate_down, mixer.gate_down)] == [64, 64, 160]
    singular = torch.linalg.svdvals(mixer.decay_up.detach())
    torch.testing.assert_close(singular, torch.full_like(singular, 0.1))
    residual: Any = RWKV(1024, n_layers=2).layers[1].value_residual
    assert residual.down.shape[1] == 64
    close(residual.start, [0.73 - 0.4 * (i / 1023 - 0.5) for i in range(1024)])


def test_channel_mixing_starts_as_published() -> None:
    d, n, layer = 6, 3, 1
    down = 1 - layer / n
    gated = RWKVChannelMix(d, layer=layer, n_layers=n)
    close(gated.share_key, [(i / d) ** down for i in range(d)])
    close(gated.share_receptance, [(i / d) ** down for i in range(d)])
    is_orthogonal(gated.key, 2.0)
    ungated = RWKVChannelMix(d, gated=False, layer=layer, n_layers=n)
    close(ungated.share_key, [(i / d) ** down**4 for i in range(d)])
    assert not any(linear.weight.any() for linear in (gated.value, gated.receptance, ungated.value))
    assert 0.25 < ungated.key.weight.abs().max() * d**0.5 <= 0.5


def test_widths_inside_are_as_published() -> None:
    inner = {v: RWKV(64, n_layers=1, version=v).layers[0].channel.key.out_features for v in (4, 5, 6, 7)}  # type: ignore
    assert inner == {4: 256, 5: 224, 6: 224, 7: 256}


def test_the_language_model_starts_as_published() -> None:
    model = RWKVLanguageModel(24, RWKV(6, n_layers=1, version=4))
    assert 0.5e-4 < model.embedding.weight.abs().max() <= 1e-4
    assert model.head is not None
    is_orthogonal(model.head, 0.5 * math.sqrt(24 / 6))
    assert torch.equal(model.backbone.layers[0].time.key.weight, torch.zeros(6, 6))  # type: ignore


def test_hints() -> None:
    model = RWKVLanguageModel(11, stack(7))
    hints = model.optim_hints()
    assert set(hints) <= {name for name, _ in model.named_parameters()}
    assert hints["backbone.layers.1.time.decay"].lr_scale == 2
    matrices = {n for n, p in model.named_parameters() if p.ndim > 1 and not n.endswith(".weight")}
    assert matrices == {n for n in hints if n in matrices}, "only the weights of linear maps decay"
    assert not any(hints[n].weight_decay for n in matrices)
    assert (RWKV4.optim_hints["time_decay"].lr_scale, RWKV4.optim_hints["time_first"].lr_scale) == (2, 3)


def test_the_penalty_is_on_the_largest_logit_while_training() -> None:
    model = shaken(RWKVLanguageModel(11, stack(4), logit_penalty=0.3))
    plain = shaken(RWKVLanguageModel(11, stack(4), logit_penalty=0.0))
    plain.load_state_dict(model.state_dict())
    tokens = laws.random_input(model)
    targets = tokens.roll(-1, 1).index_fill(1, torch.tensor([3]), -100)
    assert torch.equal(model.token_losses(tokens, targets), plain.token_losses(tokens, targets))
    model.train()
    plain.train()
    added = model.token_losses(tokens, targets) - plain.token_losses(tokens, targets)
    laws.equal(added, 0.15 * plain(tokens).amax(-1).square() * (targets >= 0))


def test_the_largest_logits_of_many_positions() -> None:
    hidden, weight = torch.randn(3, 50, 4), torch.randn(1 << 18, 4)  # 16 rows at a time
    torch.testing.assert_close(largest_logits(hidden, weight), (hidden @ weight.mT).amax(-1))


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("layer=3 must be from 0", lambda: RWKV4(8, layer=3, n_layers=3)),
        ("head_dim=5 must divide the 8", lambda: RWKV5(8, head_dim=5)),
        ("share_rank=0", lambda: RWKV6(8, head_dim=4, share_rank=0)),
        ("rank 0", lambda: RWKV7(8, head_dim=4, gate_rank=0)),
        ("d_inner=0", lambda: RWKVChannelMix(8, d_inner=0)),
        ("version 4 has no decay_rank, gate_rank", lambda: RWKV(8, n_layers=1, version=4, options=SIZES[7])),
        ("version 5 has no share_rank", lambda: RWKV(8, n_layers=1, version=5, options=RWKVOptions(share_rank=3))),
        ("channel_first=True", lambda: RWKV(64, n_layers=1, version=7, channel_first=True)),
        ("n_layers=0", lambda: RWKV(64, n_layers=0)),
        ("logit_penalty=-1", lambda: RWKVLanguageModel(11, stack(4), logit_penalty=-1.0)),
    ],
)
def test_what_cannot_be_built_is_refused(message: str, make: Any) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_every_size_is_that_of_some_version() -> None:
    used = {field.name for o in SIZES.values() for field in dataclasses.fields(o) if getattr(o, field.name) is not None}
    assert used == {field.name for field in dataclasses.fields(RWKVOptions)}


# The authors' checkpoints.


def published(case: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dict in a golden file, and all of the file."""
    tensors = {name: tensor.clone() for name, tensor in load_file(GOLDEN / f"{case}.safetensors").items()}
    return {n.removeprefix("param/"): t for n, t in tensors.items() if n.startswith("param/")}, tensors


@pytest.mark.parametrize("case", ["rwkv4/lm_rwkv", "rwkv4/lm_rwkv_ffnpre", "rwkv7/lm"])
def test_checkpoints_of_the_authors(case: str, tmp_path: Path) -> None:
    weights, tensors = published(case)
    torch.save(weights, tmp_path / "RWKV.pth")
    model = load_published(tmp_path / "RWKV.pth").eval()
    laws.equal(model(tensors["input_ids"]), tensors["output"])
    laws.recurrent_equals_parallel(model)


@pytest.mark.parametrize("version", [4, 5, 6, 7])
def test_the_structure_is_read_off_the_shapes(version: int, tmp_path: Path) -> None:
    """Random tensors under the published names; what cannot be read off (a divisor) comes from the config."""
    names = {ours: theirs for theirs, ours in PUBLISHED_OPTIONS.items()}
    sizes = {names[f.name]: getattr(SIZES[version], f.name) for f in dataclasses.fields(RWKVOptions)}
    sizes = {name: value for name, value in sizes.items() if value is not None}
    config = {"version": version, "vocab_size": 11, "n_embd": 8, "n_layer": 2, **sizes}
    model = build(config, "BlinkDL")
    weights = {rule.theirs: torch.randn(rule.shape, dtype=torch.float64) for rule in rules(model, "BlinkDL", {})}
    torch.save(weights, tmp_path / "RWKV.pth")
    told = {"head_size_divisor": sizes["head_size_divisor"]} if "head_size_divisor" in sizes else {}
    loaded = load_published(tmp_path / "RWKV.pth", config=told).eval()
    model.double().eval().load_state_dict(assemble(rules(model, "BlinkDL", {}), weights))
    tokens = laws.random_input(model)
    assert torch.equal(loaded(tokens), model(tokens))


PUBLISHED_OPTIONS = {
    "dim_ffn": "d_inner", "dim_att": "d_attention", "head_size": "head_dim", "head_size_divisor": "divisor",
    "D_MIX_LORA": "share_rank", "D_DECAY_LORA": "decay_rank", "D_AAA_LORA": "rate_rank", "D_GATE_LORA": "gate_rank",
    "D_MV_LORA": "value_rank",
}  # fmt: skip


def test_all_that_is_wrong_with_a_checkpoint_is_listed(tmp_path: Path) -> None:
    weights, _ = published("rwkv4/lm_rwkv")
    del weights["blocks.1.att.output.weight"]
    weights["blocks.0.ffn.value.weight"] = torch.zeros(3, 3)
    weights["blocks.2.extra"] = torch.zeros(1)
    torch.save(weights, tmp_path / "RWKV.pth")
    with pytest.raises(InputError) as caught:
        load_published(tmp_path / "RWKV.pth", config={"n_layer": 4, "ctx_len": 1024})
    assert "n_layer=4, but the tensors have 3" in str(caught.value)
    with pytest.raises(InputError) as caught:
        load_published(tmp_path / "RWKV.pth")
    found = [line.strip().split(" is ")[0] for line in str(caught.value).splitlines()[1:]]
    wrong = {"missing: blocks.1.att.output.weight", "shape: blocks.0.ffn.value.weight", "unknown: blocks.2.extra"}
    assert set(found) == wrong
    del weights["blocks.0.ffn.key.weight"]
    torch.save(weights, tmp_path / "RWKV.pth")
    with pytest.raises(InputError, match=r"missing: blocks\.0\.ffn\.key\.weight"):
        load_published(tmp_path / "RWKV.pth")
