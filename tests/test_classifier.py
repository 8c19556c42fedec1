"""The classifier: what stands for a sequence, where padding is invisible, pairs, heads, and mistakes."""

from typing import get_args

import laws
import pytest
import torch
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers import S4D, Attention
from longreach.models import MLP, Backbone, Classifier, LearnedPositions
from longreach.models.classifier import HeadOptions, Pool

LENGTHS = torch.tensor([9, 4])


def make(*, causal: bool = False, positions: int | None = None, **options: object) -> Classifier:
    mixers = [lambda d: S4D(d, d_state=4, causal=causal), lambda d: Attention(d, causal=causal)]
    backbone = Backbone(8, n_layers=2, mixers=mixers, channel_mixer=MLP)
    if positions:
        backbone = LearnedPositions(backbone, length=positions)
    return Classifier(11, backbone, n_classes=3, **options).double().eval()


def inputs_of(model: Classifier, *shape: int) -> Tensor:
    if model.inputs == "features":
        return torch.randn(*shape, 11, dtype=torch.float64)
    return torch.randint(11, shape)


@pytest.mark.parametrize("inputs", ["tokens", "features"])
@pytest.mark.parametrize(
    ("pool", "side"), [("mean", "left"), ("last", "left"), ("first", "left"), *((p, "right") for p in get_args(Pool))]
)
def test_padding_is_invisible(inputs: str, pool: str, side: str) -> None:
    model = make(inputs=inputs, pool=pool, positions=10)
    x = inputs_of(model, 2, 9)
    mask = torch.arange(9) < LENGTHS[:, None]
    short = x[1:, :4]
    if side == "left":
        mask, short = mask.flip(1), x[1:, 5:]
    logits = model(x, mask)
    laws.equal(logits[:1], model(x[:1]))
    laws.equal(logits[1:], model(short))


@pytest.mark.parametrize("causal", [False, True])
def test_pools_are_what_they_are_called(causal: bool) -> None:
    for pool, expected in {
        "mean": lambda h: h.mean(1),
        "last": lambda h: h[:, -1],
        "first": lambda h: h[:, 0],
    }.items():
        if not (causal and pool == "first"):
            model = make(pool=pool, causal=causal)
            x = inputs_of(model, 2, 9)
            laws.equal(model(x), model.head(expected(model.hidden(x))))


def test_cls_is_a_learned_vector_in_front() -> None:
    model = make(pool="cls", positions=10)
    nn.init.normal_(model.start)
    x = inputs_of(model, 2, 9)
    hidden = model.backbone(torch.cat([model.start.expand(2, 1, -1), model.embedding(x)], dim=1))
    laws.equal(model(x), model.head(hidden[:, 0]))
    assert model.max_length == 9


@pytest.mark.parametrize(("pair", "parts"), [("concatenated", 2), ("compared", 4)])
def test_pairs_pass_one_backbone_and_meet_in_the_head(pair: str, parts: int) -> None:
    model = make(pair=pair)
    x = inputs_of(model, 2, 2, 9)
    mask = torch.arange(9) < torch.tensor([[[9], [4]], [[7], [9]]])
    first, second = model.pooled(x[:, 0], mask[:, 0]), model.pooled(x[:, 1], mask[:, 1])
    every = [first, second, first * second, first - second]
    laws.equal(model(x, mask), model.head(torch.cat(every[:parts], dim=-1)))


def test_a_head_has_the_layers_that_were_asked_for() -> None:
    model = make(head=HeadOptions(widths=(5, 4), activation="gelu", dropout=0.5), pair="compared")
    assert [tuple(layer.weight.shape) for layer in model.head.hidden] == [(5, 32), (4, 5)]
    x = torch.randn(3, 32, dtype=torch.float64)
    hidden = nn.functional.gelu(model.head.hidden[1](nn.functional.gelu(model.head.hidden[0](x))))
    laws.equal(model.head(x), model.head.output(hidden))
    assert not torch.equal(model.train().head(x), model.head(x))


def test_dropout_is_on_the_embedding() -> None:
    model = make(dropout=0.5)
    x = inputs_of(model, 2, 9)
    assert not torch.equal(model.train()(x), model(x))
    laws.equal(model.eval()(x), model(x))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"pool": "first", "causal": True}, "pool='first' looks at the beginning"),
        ({"pool": "cls", "causal": True}, "pool='cls' looks at the beginning"),
    ],
)
def test_what_cannot_be_learned_is_refused(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        make(**options)


def test_sizes_and_tokens_are_checked() -> None:
    with pytest.raises(InputError, match="n_classes=1 at least 2"):
        Classifier(11, make().backbone, n_classes=1)
    model = make()
    assert model.max_length is None
    with pytest.raises(InputError, match="token 11 is none of the model's 11"):
        model(torch.tensor([[0, 11]]))
    with pytest.raises(InputError, match="token -1"):
        model(torch.tensor([[0, -1]]))
