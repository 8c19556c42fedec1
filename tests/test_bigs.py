"""BiGS: its kernels and starts, the masked language model around it, and the authors' checkpoints."""

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
from longreach.mixers import BiGS
from longreach.mixers.bigs import convolve
from longreach.models import Backbone, LearnedPositions, MaskedLanguageModel, NormalisedInput, load_published

GOLDEN = Path(__file__).parent / "golden" / "bigs"


def test_kernels_are_sums_of_modes() -> None:
    """Against the formula, with a mode that would grow if its real part were not clipped."""
    mixer = shaken(BiGS(6, d_state=5, init="lin"))
    with torch.no_grad():
        mixer.A_real[0, 0] = 0.3
    A = torch.complex(mixer.A_real.clamp(max=-1e-4), mixer.A_imag)
    dt, C = mixer.log_dt.exp()[:, None], torch.view_as_complex(mixer.C)
    steps = torch.arange(9)
    terms = (C * (torch.exp(dt * A) - 1) / A)[..., None] * torch.exp((dt * A)[..., None] * steps)
    laws.equal(mixer.kernels(9), terms.sum(1).real)


def test_one_kernel_serves_all_channels() -> None:
    u, kernel, skip = torch.randn(2, 3, 7).double(), torch.randn(7).double(), torch.randn(1).double()
    expected = torch.stack([sum(kernel[j] * u[..., t - j] for j in range(t + 1)) for t in range(7)], dim=-1)
    laws.equal(convolve(u, kernel, skip), expected + skip * u)


def test_each_direction_reads_one_way() -> None:
    """With a gate that only the one direction reaches, the output at a position sees nothing of the other side."""
    for silent, unseen in (("leave_backward", slice(5, None)), ("leave_forward", slice(None, 4))):
        mixer = shaken(BiGS(6, d_state=4))
        with torch.no_grad():
            getattr(mixer, silent).weight.zero_()
        x = laws.random_input(mixer).requires_grad_()
        (gradient,) = torch.autograd.grad(mixer(x)[:, 4].sum(), x)
        assert gradient[:, unseen].abs().max() < 1e-12 * gradient.abs().max()


def test_starts_are_as_published() -> None:
    mixers = {init: BiGS(8, d_state=6, init=init) for init in ("hippo", "inv", "lin")}  # type: ignore
    n = torch.arange(6)
    torch.testing.assert_close(mixers["lin"].A_imag[0], math.pi * n)
    torch.testing.assert_close(mixers["inv"].A_imag[1], 6 / math.pi * (6 / (2 * n + 1) - 1))
    P = torch.sqrt(1 + 2 * n.double())
    skew = -(torch.tril(torch.outer(P, P)) - torch.diag(n)) + torch.outer(P, P) / 2
    frequencies = torch.linalg.eigvals(skew).imag.sort().values
    torch.testing.assert_close(mixers["hippo"].A_imag[0].double(), frequencies, rtol=1e-6, atol=1e-6)
    for mixer in mixers.values():
        assert (mixer.A_real == -0.5).all()
        assert (mixer.D == 1).all()
        assert mixer.wide.out_features == 24
        assert not any(linear.bias.any() for linear in mixer.children() if isinstance(linear, nn.Linear))
    many = torch.stack([BiGS(4, d_state=2).log_dt for _ in range(200)])
    assert math.log(0.01) <= many.min() < math.log(0.02)
    assert math.log(0.5) < many.max() <= 0
    wide = BiGS(64, d_state=512, init="lin")
    assert abs(wide.C.std().item() - 0.5**0.5) < 0.05
    assert abs(wide.out.weight.std().item() - 0.02) < 0.002


def test_hints() -> None:
    hints = BiGS(8).optim_hints
    assert set(hints) == {"A_real", "A_imag", "log_dt"}
    assert {(hint.lr_scale, hint.weight_decay) for hint in hints.values()} == {(0.1, False)}


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("d_inner=0", lambda: BiGS(8, d_inner=0)),
        ("d_state=0", lambda: BiGS(8, d_state=0)),
        ("dt_min=2.0", lambda: BiGS(8, dt_min=2.0)),
        ("d_state=5 must be even", lambda: BiGS(8, d_state=5)),
        ("vocab_size=0", lambda: MaskedLanguageModel(0, BiGS(8))),
        ("n_types=-1", lambda: MaskedLanguageModel(5, BiGS(8), n_types=-1)),
    ],
)
def test_what_cannot_be_built_is_refused(message: str, make: Any) -> None:
    with pytest.raises(InputError, match=message):
        make()


# The masked language model.


def masked_model(positions: bool = True, n_types: int = 0, **options: Any) -> Any:
    """Small, of two layers, in the form that the authors have."""
    torch.manual_seed(0)
    backbone = Backbone(
        8, n_layers=2, mixers=[lambda d: BiGS(d, d_state=4)], channel_mixer=nn.Identity, layout="joint", **options
    )
    inner = LearnedPositions(NormalisedInput(backbone), length=37) if positions else backbone
    model = shaken(MaskedLanguageModel(11, inner, n_types=n_types))
    with torch.no_grad():
        for linear in backbone.modules():
            if isinstance(linear, nn.Linear):  # so that the branches are about as large as what they are added to
                linear.weight *= 10
    return model


@pytest.mark.parametrize("law", laws.laws_of(masked_model()), ids=lambda law: law.__name__)
def test_law(law: Any) -> None:
    law(masked_model())


@pytest.mark.parametrize("law", [laws.padding_is_invisible, laws.sees_everything, laws.every_parameter_learns])
def test_laws_without_positions_or_last_norm(law: Any) -> None:
    law(masked_model(positions=False, final_norm=False))


def test_a_backbone_without_a_last_norm() -> None:
    model = masked_model(positions=False, final_norm=False).backbone
    x = laws.random_input(model)
    expected = x
    for block in model.blocks:
        expected = expected + block.mixer(block.norm(expected))
    laws.equal(model(x), expected)


def test_losses_are_those_of_the_logits() -> None:
    model = masked_model(n_types=2)
    tokens = laws.random_input(model)
    targets = tokens.roll(1, 1).index_fill(1, torch.tensor([0, 5]), -100)
    expected = -model(tokens).log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    laws.equal(model.token_losses(tokens, targets), expected * (targets >= 0))


def test_types_are_added_to_tokens() -> None:
    model = masked_model(n_types=2)
    tokens = laws.random_input(model)
    types = torch.ones_like(tokens)
    laws.equal(model(tokens), model(tokens, None, 0 * types))
    changed = model(tokens, None, types)
    assert not torch.allclose(changed, model(tokens))
    with torch.no_grad():
        model.embedding.weight += model.types.weight[1] - model.types.weight[0]
        weight = model.embedding.weight - model.types.weight[1] + model.types.weight[0]
    laws.equal(model.hidden(tokens) @ weight.T + model.bias, changed)


def test_tokens_and_types_outside_the_tables_are_refused() -> None:
    model = masked_model(n_types=2)
    tokens = laws.random_input(model)
    with pytest.raises(InputError, match="token 11 is none of the model's 11"):
        model(tokens + 11 * (tokens == tokens[0, 0]) - tokens * (tokens == tokens[0, 0]))
    with pytest.raises(InputError, match="token type 2"):
        model(tokens, None, torch.full_like(tokens, 2))
    with pytest.raises(InputError, match="token type 0 is none of the model's 0"):
        masked_model()(tokens, None, torch.zeros_like(tokens))


# The authors' checkpoints.


def published(transposed: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dict in the golden file, in flax or in the names and layout of the port to torch; all of the file."""
    tensors = {name: tensor.clone() for name, tensor in load_file(GOLDEN / "masked_lm.safetensors").items()}
    weights = {n.removeprefix("param/"): t for n, t in tensors.items() if n.startswith("param/")}
    if not transposed:
        return weights, tensors
    port = {}
    for name, tensor in weights.items():
        value = tensor.T.contiguous() if name.endswith(".kernel") else tensor
        name = name.replace("s4_bert.", "bigs.")
        for suffix in (".kernel", ".scale", ".embedding"):
            name = f"{name.removesuffix(suffix)}.weight" if name.endswith(suffix) else name
        for direction in (".fs4.", ".bs4."):
            if direction in name and not name.endswith(".D"):
                name = name.replace(direction, f"{direction}kernel.")
        port[name] = value
    port["cls.predictions.decoder.weight"] = port["bigs.embeddings.word_embeddings.weight"].clone()
    port["cls.predictions.decoder.bias"] = port["cls.predictions.bias"].clone()
    port["bigs.embeddings.position_ids"] = torch.arange(8)[None]
    port["bigs.pooler.dense.weight"] = torch.zeros(6, 6)
    return port, tensors


def test_checkpoints_of_the_authors(tmp_path: Path) -> None:
    weights, tensors = published(transposed=False)
    torch.save(weights, tmp_path / "bigs.pth")
    model = load_published(tmp_path / "bigs.pth", config={"pre_norm": True}).eval()
    laws.equal(model(tensors["input_ids"], None, tensors["token_type_ids"]), tensors["output"])
    after = load_published(tmp_path / "bigs.pth").eval()
    assert not torch.allclose(after(tensors["input_ids"]), model(tensors["input_ids"]))


def test_checkpoints_of_the_port_to_torch(tmp_path: Path) -> None:
    """The same numbers stored as the port does it: equal but for the GELU of the layers, which is exact there."""
    weights, tensors = published(transposed=True)
    torch.save(weights, tmp_path / "bigs.bin")
    model = load_published(tmp_path / "bigs.bin").eval()
    found = model(tensors["input_ids"], None, tensors["token_type_ids"])
    torch.testing.assert_close(found, tensors["output"], rtol=0, atol=2e-2)
    assert not torch.allclose(found, tensors["output"], rtol=0, atol=1e-9)
    for block in model.backbone.inner.inner.blocks:
        block.mixer.approximation = "tanh"
    laws.equal(model(tensors["input_ids"], None, tensors["token_type_ids"]), tensors["output"])


def test_all_that_is_wrong_with_a_checkpoint_is_listed(tmp_path: Path) -> None:
    weights, _ = published(transposed=False)
    del weights["s4_bert.encoder.layer.1.do.bias"]
    weights["s4_bert.encoder.layer.0.fs4.C"] = torch.zeros(2, 2)
    weights["s4_bert.extra"] = torch.zeros(1)
    torch.save(weights, tmp_path / "bigs.pth")
    with pytest.raises(InputError) as caught:
        load_published(tmp_path / "bigs.pth")
    found = {line.strip().split(" is ")[0] for line in str(caught.value).splitlines()[1:]}
    assert found == {
        "missing: s4_bert.encoder.layer.1.do.bias", "shape: s4_bert.encoder.layer.0.fs4.C", "unknown: s4_bert.extra"
    }  # fmt: skip
    with pytest.raises(InputError, match="hidden_size=7, but the tensors have 6"):
        load_published(tmp_path / "bigs.pth", config={"hidden_size": 7})
