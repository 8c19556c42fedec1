"""The backbone is a mixer, the language model has the same views, and each of their options does what it says."""

from typing import get_args

import laws
import pytest
import torch
from mixer_cases import DETECTORS, LEARNERS
from torch import nn

from longreach.errors import InputError
from longreach.mixers import SequenceMixer
from longreach.mixers.norms import BatchNorm, Norm, apply_norm, make_norm
from longreach.models import GLU, MLP, Backbone, GatedMLP, LanguageModel
from longreach.models.backbone import Block


class RunningSum(SequenceMixer):
    """The simplest honest mixer: h_t = w x_t + h_{t-1}."""

    def __init__(self, d_model: int, *, max_length: int | None = None) -> None:
        super().__init__(d_model, causal=True)
        self.w = nn.Parameter(torch.randn(d_model))
        self.max_length = max_length

    def forward(self, x, mask=None):
        if mask is not None:
            x = x * mask[..., None]
        return (self.w * x).cumsum(1)

    def init_state(self, batch_size):
        return (self.w.new_zeros(batch_size, self.d_model),)

    def step(self, x, state):
        h = state[0] + self.w * x
        return h, (h,)


BACKBONES = {
    "split": {},
    "joint": {"layout": "joint", "channel_mixer": GLU},
    "post": {"norm_position": "post"},
    "joint-post": {"layout": "joint", "norm_position": "post", "channel_mixer": GLU},
    "rms": {"norm": "rms"},
    "scale": {"norm": "scale"},
    "rms-outside": {"norm": "rms_outside", "channel_mixer": GatedMLP},
    "batch": {"norm": "batch"},
    "recompute": {"recompute": True},
    "dropout": {"dropout": 0.5, "channel_mixer": lambda d: MLP(d, expand=1.5, activation="gelu_tanh", dropout=0.5)},
}


def make(case: str) -> Backbone:
    options = {"n_layers": 3, "mixers": [RunningSum, lambda d: RunningSum(d)], "channel_mixer": MLP} | BACKBONES[case]
    return Backbone(8, **options).double().eval()


def shaken(module: nn.Module) -> nn.Module:
    """The module with every parameter moved, so that no zero or one hides a mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


@pytest.mark.parametrize("case", BACKBONES)
@pytest.mark.parametrize("law", laws.ALWAYS + laws.IF_CAUSAL, ids=lambda law: law.__name__)
def test_a_backbone_is_a_mixer(case: str, law) -> None:
    law(shaken(make(case)))


@pytest.mark.parametrize("layout", ["split", "joint"])
def test_a_silent_block_is_the_identity(layout) -> None:
    """The residual paths lead straight through: where nothing is added, nothing changes."""
    block = Block(RunningSum(8), GLU(8), layout=layout).double()
    nn.init.zeros_(block.channel_mixer.linear.weight)
    nn.init.zeros_(block.channel_mixer.linear.bias)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    y, _ = block(x, lambda u: (0 * u, None))
    laws.equal(y, x)


def test_a_mixer_that_normalises_itself_gets_its_input_as_it_is() -> None:
    """In pre-norm there is no second norm in front of it; in post-norm nothing changes."""
    mixer = RunningSum(8)
    mixer.normalises_itself = True
    x = torch.randn(2, 5, 8)
    for position, has_norm in (("pre", False), ("post", True)):
        block, seen = Block(mixer, MLP(8), norm_position=position), []
        block(x, lambda u, seen=seen: (seen.append(u) or u, None))
        assert seen[0] is x
        assert any(True for _ in block.norm.parameters()) == has_norm


@pytest.mark.parametrize("kind", get_args(Norm))
def test_norms_without_weights_do_what_new_ones_do(kind: Norm) -> None:
    x = torch.randn(2, 5, 8)
    plain = make_norm(kind, 8, affine=False)
    assert not list(plain.parameters())
    torch.testing.assert_close(apply_norm(plain, x, None), apply_norm(make_norm(kind, 8), x, None))


def test_mixers_repeat_over_the_layers() -> None:
    backbone = Backbone(4, n_layers=5, mixers=[RunningSum, lambda d: RunningSum(d, max_length=9)], channel_mixer=MLP)
    assert [block.mixer.max_length for block in backbone.blocks] == [None, 9, None, 9, None]
    assert backbone.max_length == 9


def test_recomputation_gives_the_same_gradients() -> None:
    plain = make("split").train()
    again = Backbone(8, n_layers=3, mixers=[RunningSum], channel_mixer=MLP, recompute=True).double().train()
    again.load_state_dict(plain.state_dict())
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    for backbone in (plain, again):
        backbone(x).square().sum().backward()
    for p, q in zip(plain.parameters(), again.parameters(), strict=True):
        laws.equal(p.grad, q.grad)


def test_an_empty_backbone_is_refused() -> None:
    with pytest.raises(InputError, match="n_layers=0"):
        Backbone(8, n_layers=0, mixers=[RunningSum], channel_mixer=MLP)
    with pytest.raises(InputError, match="0 mixers"):
        Backbone(8, n_layers=1, mixers=[], channel_mixer=MLP)


def test_padding_takes_no_part_in_batch_statistics() -> None:
    norm, alone = BatchNorm(4).double(), BatchNorm(4).double()
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    noisy = torch.where(mask[..., None], x, 1e3)
    real = norm(noisy, mask)[mask]
    laws.equal(real, alone(x[mask][None])[0])
    laws.equal(norm.running_mean, alone.running_mean)
    assert not torch.allclose(BatchNorm(4).double()(noisy)[mask], real)


def language_model(tied: bool = True, causal_length: int | None = None) -> LanguageModel:
    backbone = Backbone(8, n_layers=2, mixers=[lambda d: RunningSum(d, max_length=causal_length)], channel_mixer=MLP)
    return shaken(LanguageModel(11, backbone, tied=tied).double().eval())


@pytest.mark.parametrize("tied", [True, False])
def test_language_model_views_agree(tied: bool) -> None:
    model, tokens = language_model(tied), torch.randint(11, (3, 9))
    logits = model(tokens)
    state, stepped = model.init_state(3), []
    for token in tokens.unbind(1):
        y, state = model.step(token, state)
        stepped.append(y)
    laws.equal(torch.stack(stepped, 1), logits)
    first, state = model.prefill(tokens[:, :4], model.init_state(3))
    laws.equal(first, logits[:, :4])
    last, _ = model.read(tokens[:, 4:], state)
    laws.equal(last, logits[:, -1])


def test_embeddings_are_scaled_but_not_the_head() -> None:
    backbone = Backbone(8, n_layers=1, mixers=[RunningSum], channel_mixer=MLP)
    model, tokens = LanguageModel(11, backbone, embedding_scale=3.0).eval(), torch.randint(11, (2, 5))
    hidden = backbone(3 * model.embedding.weight[tokens])
    torch.testing.assert_close(model(tokens), hidden @ model.embedding.weight.mT)


@pytest.mark.parametrize("tied", [True, False])
def test_losses_are_the_cross_entropy_of_the_logits(tied: bool) -> None:
    model, tokens, targets = language_model(tied), torch.randint(11, (2, 9)), torch.randint(11, (2, 9))
    targets[0, 3] = -100
    losses = model.token_losses(tokens, targets)
    expected = -model(tokens).log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    assert losses[0, 3] == 0
    counted = targets != -100
    laws.equal(losses[counted], expected[counted])
    first, state = model.score(tokens[:, :5], targets[:, :5], model.init_state(2))
    second, _ = model.score(tokens[:, 5:], targets[:, 5:], state)
    laws.equal(torch.cat([first, second], 1), losses)


def test_ragged_prompts_are_read_as_if_alone() -> None:
    model, tokens = language_model(), torch.randint(11, (2, 6))
    mask = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    logits, state = model.read(tokens, model.init_state(2), mask)
    alone, alone_state = model.read(tokens[1:, 2:], model.init_state(1))
    laws.equal(logits[1:], alone)
    after, _ = model.step(tokens[:, 0], state)
    alone_after, _ = model.step(tokens[1:, 0], alone_state)
    laws.equal(after[1:], alone_after)


@pytest.mark.parametrize("wrong", [-1, 11])
def test_a_token_outside_the_vocabulary_is_named(wrong: int) -> None:
    tokens = torch.zeros(1, 4, dtype=torch.long)
    tokens[0, 2] = wrong
    with pytest.raises(InputError, match=rf"token {wrong} is outside the vocabulary of 11"):
        language_model()(tokens)


def test_initialisation_scales_the_ends_of_residual_branches() -> None:
    backbone = Backbone(64, n_layers=8, mixers=[RunningSum], channel_mixer=MLP)
    model = LanguageModel(500, backbone, init_std=0.02)
    mlp = backbone.blocks[0].channel_mixer
    torch.testing.assert_close(mlp.up.weight.std().item(), 0.02, rtol=0.1, atol=0)
    torch.testing.assert_close(mlp.down.weight.std().item(), 0.02 / 4, rtol=0.1, atol=0)
    torch.testing.assert_close(model.embedding.weight.std().item(), 0.02, rtol=0.1, atol=0)


@pytest.mark.parametrize("name", LEARNERS | DETECTORS)
def test_a_published_start_survives_and_no_other(name: str) -> None:
    """Linear maps that a mixer does not leave as torch starts them are its paper's, and a language model keeps them."""
    torch.manual_seed(0)
    mixer = (LEARNERS | DETECTORS)[name](64)
    linears = {path: module for path, module in mixer.named_modules() if isinstance(module, nn.Linear)}
    before = {path: linear.weight.detach().clone() for path, linear in linears.items()}
    as_torch = all(0.99 < w.abs().max() * w.shape[1] ** 0.5 <= 1.0 for w in before.values())
    assert mixer.keeps_its_start == (not as_torch)
    LanguageModel(5, Backbone(64, n_layers=1, mixers=[lambda _: mixer], channel_mixer=MLP), init_std=0.02)
    for path, linear in linears.items():
        if mixer.keeps_its_start:
            laws.equal(linear.weight, before[path])
        else:
            std = 0.02 / 2**0.5 if path.endswith("out") else 0.02
            torch.testing.assert_close(linear.weight.std().item(), std, rtol=0.1, atol=0)


def test_a_part_of_a_mixer_can_keep_its_start() -> None:
    mixer = RunningSum(4)
    mixer.drawn, mixer.kept = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    mixer.kept.keeps_its_start = True
    drawn, kept = (part[0].weight.detach().clone() for part in (mixer.drawn, mixer.kept))
    LanguageModel(5, Backbone(4, n_layers=1, mixers=[lambda _: mixer], channel_mixer=MLP))
    assert torch.equal(mixer.kept[0].weight, kept)
    assert not torch.equal(mixer.drawn[0].weight, drawn)


def test_length_limit_is_that_of_the_mixers() -> None:
    assert language_model().max_length is None
    assert language_model(causal_length=5).max_length == 5
    assert language_model().causal
