"""Training on what is long: work in pieces gives what is done at once, and truncated back-propagation what it says."""

import signal
from functools import partial
from pathlib import Path

import laws
import pytest
import torch
from test_corpora_corpus import SPLIT, Spy, texts  # noqa: F401 (a fixture)
from torch import Tensor, nn
from training_toys import assert_same_run, metrics, small_run

from longreach.errors import InputError
from longreach.mixers import S4D, Attention, Hyena, S4DOptions, hyena, implicit_filter, map_state
from longreach.mixers.implicit_filter import FilterOptions, ImplicitFilter
from longreach.models import GLU, MLP, Backbone, LanguageModel, backbone
from longreach.ops import long_conv
from longreach.ops.piecewise import piecewise
from longreach.tasks import Batch, Corpus, MaskedCorpus
from longreach.tasks.corpora import Reading

LAYOUTS = {
    "split": {},
    "joint": {"layout": "joint", "channel_mixer": GLU},
    "post": {"norm_position": "post"},
    "batch": {"norm": "batch"},
}


class Watched(nn.Module):
    """A linear map that notes how much it is given at once, and in which dtype its product is made."""

    def __init__(self, width: int = 6, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear, self.unused = nn.Linear(width, width), nn.Parameter(torch.ones(()))
        self.twins = nn.ParameterList(torch.randn(width) for _ in range(2))  # their gradients are one tensor
        self.dropout = nn.Dropout(dropout)
        self.frozen = nn.Parameter(torch.randn(width), requires_grad=False)
        self.seen: list[tuple[int, torch.dtype]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Scaled and mapped."""
        product = self.linear(self.frozen * x)
        self.seen.append((x.shape[1], product.dtype))
        return self.dropout(product + (self.twins[0] + self.twins[1])).exp()


def gradients(module: nn.Module, y: Tensor, *inputs: Tensor) -> list[Tensor | None]:
    """Those of all inputs and parameters, with weights that differ from position to position."""
    wanted = [*inputs, *(p for p in module.parameters() if p.requires_grad)]
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return list(torch.autograd.grad((y * weights).sum(), wanted, allow_unused=True))


def assert_equal(ours: list[Tensor | None], theirs: list[Tensor | None]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            laws.equal(a, b)


def test_pieces_give_what_the_whole_gives() -> None:
    module, x = Watched().double(), torch.randn(2, 11, 6, dtype=torch.float64, requires_grad=True)
    y = piecewise(module, [x], list(module.parameters()), 4)
    assert [length for length, _ in module.seen] == [4, 4, 3]
    laws.equal(y, module(x))
    module.seen.clear()
    assert_equal(gradients(module, y, x), gradients(module, module(x), x))
    assert max(length for length, _ in module.seen[:-1]) == 4


def test_pieces_can_lie_along_another_axis_of_the_result() -> None:
    module, x = Watched().double(), torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    scale = torch.linspace(1, 2, 11, dtype=torch.float64)

    def function(x: Tensor, scale: Tensor) -> Tensor:
        return (module.linear(x) * scale[:, None]).mT

    y = piecewise(function, [x, scale], list(module.parameters()), 3, cut=0)
    laws.equal(y, function(x, scale))
    assert_equal(gradients(module, y, x), gradients(module, function(x, scale), x))


def test_pieces_repeat_their_dropout() -> None:
    """What was dropped in the forward pass is dropped for the gradient, and pieces differ from each other."""
    module, x = Watched(dropout=0.5).double(), torch.zeros(1, 8, 6, dtype=torch.float64, requires_grad=True)
    for parameter in (module.linear.bias, *module.twins):
        nn.init.ones_(parameter)
    y = piecewise(module, [x], list(module.parameters()), 4)
    kept = y > 1
    assert 0 < kept.sum() < kept.numel()
    assert not torch.equal(kept[:, :4], kept[:, 4:])
    (grad,) = torch.autograd.grad(y.sum(), module.linear.bias)
    laws.equal(grad, (2 * y * kept).sum((0, 1)))
    y = piecewise(module, [x], list(module.parameters()), 4)
    (grad,) = torch.autograd.grad(y.sum(), module.linear.bias, create_graph=True)
    laws.equal(grad, (2 * y * (y > 1)).sum((0, 1)))


def test_pieces_keep_autocast_for_the_gradient() -> None:
    module, x = Watched(), torch.randn(1, 8, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = piecewise(module, [x], list(module.parameters()), 4)
    y.sum().backward()
    assert [dtype for _, dtype in module.seen] == [torch.bfloat16] * 4
    assert module.linear.weight.grad is not None
    assert module.linear.weight.grad.dtype == torch.float32


def test_pieces_add_up_the_gradients_of_what_all_of_them_need() -> None:
    """Twice over too; what needs no gradient gets none."""
    rows, x = torch.randn(5, 7, dtype=torch.float64), torch.randn(2, 6, 7, dtype=torch.float64)
    shift = torch.randn(6, 1, dtype=torch.float64)
    module = Watched(7).double()
    rows.requires_grad_()
    x.requires_grad_()

    def function(rows: Tensor, x: Tensor, shift: Tensor) -> Tensor:
        return (module(x) + shift) @ rows.mT

    ours = piecewise(function, [rows], list(module.parameters()), 2, cut=0, join=2, whole=[2 * x, shift])
    assert len(module.seen) == 3
    theirs = function(rows, 2 * x, shift)
    laws.equal(ours, theirs)
    assert_equal(gradients(module, ours, rows, x), gradients(module, theirs, rows, x))
    ours = piecewise(function, [rows], list(module.parameters()), 2, cut=0, join=2, whole=[2 * x, shift])
    both = (torch.autograd.grad((y**2).sum(), x, create_graph=True)[0] for y in (ours, function(rows, 2 * x, shift)))
    assert_equal(*(gradients(module, found, rows, x) for found in both))


@pytest.mark.parametrize("options", [{"order": 3, "stage_scale": True}, {"filter": FilterOptions(skip=False)}])
def test_hyena_mixes_long_sequences_in_parts_of_its_channels(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = Hyena(10, max_length=11, **options).double()
    x = torch.randn(2, 11, 10, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(11).expand(2, 11) >= torch.tensor([[0], [3]])
    expected = mixer(x, mask)
    widths = []
    monkeypatch.setattr(
        hyena, "long_conv", lambda v, *rest, **named: widths.append(v.shape[1]) or long_conv(v, *rest, **named)
    )
    monkeypatch.setattr(hyena, "WHOLE", 10)
    monkeypatch.setattr(hyena, "PIECES", 3)
    y = mixer(x, mask)
    assert widths == [width for width in (3, 3, 3, 1) for _ in range(mixer.order - 1)]
    laws.equal(y, expected)
    assert_equal(gradients(mixer, y, x), gradients(mixer, expected, x))


@pytest.mark.parametrize("through", [False, True], ids=["given", "computed from the parameters"])
def test_pieces_have_second_derivatives(through: bool) -> None:
    module, x = Watched().double(), torch.randn(1, 8, 6, dtype=torch.float64, requires_grad=True)

    def entering() -> Tensor:
        return x @ module.linear.weight if through else x

    ours, theirs = (
        torch.autograd.grad(y.pow(2).sum(), [x, module.linear.weight], create_graph=True)
        for y in (piecewise(module, [entering()], list(module.parameters()), 4), module(entering()))
    )
    both = (torch.cat([grad.flatten() for grad in found]) for found in (ours, theirs))
    assert_equal(*(gradients(module, found, x) for found in both))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_backbone_works_in_pieces_where_nothing_is_kept(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"n_layers": 2, "mixers": [S4D], "channel_mixer": MLP} | LAYOUTS[layout]
    plain = Backbone(8, **options).double().train(layout != "batch")
    again = Backbone(8, **options, recompute=True).double().train(layout != "batch")
    again.load_state_dict(plain.state_dict())
    x = torch.randn(2, 11, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(11).expand(2, 11) >= torch.tensor([[0], [3]])
    expected = plain(x, mask)
    lengths = []
    again.blocks[0].channel_mixer.register_forward_hook(lambda module, inputs, output: lengths.append(len(output[0])))
    monkeypatch.setattr(backbone, "PIECE", 4)
    y = again(x, mask)
    laws.equal(y, expected)
    assert_equal(gradients(again, y, x), gradients(plain, expected, x))
    assert max(lengths) == (11 if layout == "batch" else 4)
    laws.equal(plain(x, mask), expected)  # gradients are wanted and everything is kept: at once
    with torch.no_grad():
        laws.equal(plain(x, mask), expected)


@pytest.mark.parametrize(
    "options",
    [
        FilterOptions(features_lr=1e-3, decay_lr=1e-3, shift=0.1),
        FilterOptions(normalise=True, features_lr=0.0),
        FilterOptions(network="sine", width=8),
    ],
)
def test_long_filters_are_drawn_in_pieces(options: FilterOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    filter = ImplicitFilter(4, n_filters=2, length=13, options=options, two_sided=True).double()
    whole = [filter(11), filter.future(11)]
    expected = [gradients(filter, taps) for taps in whole]
    monkeypatch.setattr(implicit_filter, "PIECE", 3)
    pieces = [filter(11), filter.future(11)]
    for taps, same, grads in zip(pieces, whole, expected, strict=True):
        laws.equal(taps, same)
        assert_equal(gradients(filter, taps), grads)


def make_corpus(texts: Path, cache: Path, **options: object) -> Corpus:  # noqa: F811
    corpus = Corpus(texts, context=24, batch_size=2, split=SPLIT, reading=Reading(cache=cache), **options)
    corpus.prepare()
    return corpus


def make_model(*mixers: object) -> LanguageModel:
    torch.manual_seed(1)
    return LanguageModel(257, Backbone(8, n_layers=2, mixers=list(mixers) or [S4D], channel_mixer=MLP)).double()


def run_in_pieces(corpus: Corpus, model: LanguageModel, batch: Batch) -> float:
    """The loss, as the learner computes it; leaves the gradients in the parameters."""
    model.zero_grad()
    state, total = None, 0.0
    for piece in corpus.pieces(batch):
        loss, state = corpus.loss_after(model, piece, state)
        loss.backward()
        total += loss.item()
    return total


@pytest.mark.parametrize("mixers", [[S4D], [partial(Hyena, max_length=24), partial(Attention, n_heads=2, window=5)]])
def test_truncation_changes_how_far_gradients_reach_and_not_the_loss(
    mixers: list,
    texts: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    model = make_model(*mixers)
    whole, truncated, long = (make_corpus(texts, tmp_path / "cache", truncation=n) for n in (None, 7, 24))
    batch = whole.batch(0, 0, 1)
    assert [piece.inputs.shape[1] for piece in truncated.pieces(batch)] == [7, 7, 7, 3]
    assert len(whole.pieces(batch)) == len(long.pieces(batch)) == 1
    loss = run_in_pieces(whole, model, batch)
    expected = [p.grad for p in model.parameters()]
    assert run_in_pieces(long, model, batch) == pytest.approx(loss, rel=1e-6)  # losses are summed in float32
    assert_close([p.grad for p in model.parameters()], expected)
    assert run_in_pieces(truncated, model, batch) == pytest.approx(loss, rel=1e-6)
    cut = [p.grad for p in model.parameters()]
    assert not all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(cut, expected, strict=True))
    assert_close(cut, by_hand(model, batch, 7))
    evaluations = [corpus.evaluate(model).metrics["bits_per_byte"] for corpus in (whole, truncated)]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-9)


def assert_close(ours: list[Tensor | None], theirs: list[Tensor | None]) -> None:
    """Up to the float32 in which losses are summed."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def by_hand(model: LanguageModel, batch: Batch, length: int) -> list[Tensor]:
    """The gradient where every piece starts from a state that is a constant."""
    model.zero_grad()
    for start in range(0, batch.inputs.shape[1], length):
        state = model.init_state(len(batch.inputs))
        if start:
            with torch.no_grad():
                _, state = model.read(batch.inputs[:, :start], state)
        piece = slice(start, start + length)
        model.score(batch.inputs[:, piece], batch.targets[:, piece], state)[0].sum().backward()
    return [p.grad for p in model.parameters()]


def test_what_a_truncated_pass_keeps_does_not_grow(texts: Path, tmp_path: Path) -> None:  # noqa: F811
    """The state is all that is carried, and no gradient hangs on it."""
    corpus, model = make_corpus(texts, tmp_path / "cache", truncation=6), make_model()
    state, sizes = None, []
    for piece in corpus.pieces(corpus.batch(0, 0, 1)):
        _, state = corpus.loss_after(model, piece, state)
        leaves: list[Tensor] = []
        map_state(lambda leaf, leaves=leaves: leaves.append(leaf) or leaf, state)
        assert not any(leaf.requires_grad for leaf in leaves)
        sizes.append(sum(leaf.untyped_storage().nbytes() for leaf in leaves))
    assert len(set(sizes)) == 1


def test_a_truncated_run_resumes_bit_for_bit(texts: Path, tmp_path: Path) -> None:  # noqa: F811
    class Interrupted(Corpus):
        """Stopped by a signal in the middle of a step."""

        def batch(self, step: int, part: int, parts: int) -> Batch:
            if (step, part) == (2, 1):
                signal.raise_signal(signal.SIGINT)
            return super().batch(step, part, parts)

    options = {"context": 24, "batch_size": 2, "split": SPLIT, "truncation": 7, "evaluation_tokens": 48}
    options["reading"] = Reading(cache=tmp_path / "cache")
    mixers = [S4D, partial(S4D, options=S4DOptions(kernel_length=9))]

    def model(size: int) -> LanguageModel:
        return LanguageModel(size, Backbone(8, n_layers=2, mixers=mixers, channel_mixer=MLP, dropout=0.1))

    start = partial(small_run, model=model, steps=4, evaluate_every=2, accumulate=2)
    start(tmp_path / "whole", task=Corpus(texts, **options))
    assert not start(tmp_path / "stopped", task=Interrupted(texts, **options)).finished
    assert start(tmp_path / "stopped", task=Corpus(texts, **options), resume=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_truncated_run_learns_from_the_whole_context(texts: Path, tmp_path: Path) -> None:  # noqa: F811
    """The state reaches the next piece: the loss of the first step is that without truncation."""
    found = []
    for n in (None, 7):
        corpus = make_corpus(texts, tmp_path / "cache", truncation=n)
        run = small_run(tmp_path / f"run{n}", task=corpus, model=lambda _: make_model(), steps=1, accumulate=2).run
        found.append(next(line for line in metrics(run) if line["kind"] == "train"))
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-6)
    assert found[0]["tokens"] == found[1]["tokens"] == 48
    assert found[0]["grad_norm"] != pytest.approx(found[1]["grad_norm"], rel=1e-3)


def test_truncation_is_refused_where_it_makes_no_sense(texts: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(InputError, match="truncation = 0 must be at least 1"):
        make_corpus(texts, tmp_path / "cache", truncation=0)
    corpus = make_corpus(texts, tmp_path / "cache", truncation=7)
    with pytest.raises(InputError, match="Spy has no score"):
        corpus.build(Spy)
    with pytest.raises(InputError, match="read both ways"):
        MaskedCorpus(corpus)
