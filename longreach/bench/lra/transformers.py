"""Hyperparameters of the Transformers of the Long Range Arena, of Nystromformer and of Luna, as their code has them.

Pre-norm blocks of attention and an MLP behind learned positions; a vector in front (`cls`), the first position or the
mean is pooled, and a hidden layer decides.  The published attention has no biases and sees padding in places; ours has
what longreach.mixers has, and padding is invisible.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from longreach.bench.lra.recipes import Recipe, Size, classifier, of, reading_of, stack, training
from longreach.bench.lra.tasks import Config, Reading, row_for

ARENA_CODE = "github.com/google-research/long-range-arena, lra_benchmarks/*/configs"
NYSTROM_CODE = "github.com/mlpen/Nystromformer, LRA/code/lra_config.py, with 128 landmarks"
LUNA_CODE = "github.com/XuezheMax/fairseq-apollo, examples/luna/README.lra.md and fairseq/models/lra/model.py"


class Shape(NamedTuple):
    """The sizes of a Transformer; `attention` is the width of all heads together."""

    layers: int
    width: int
    heads: int
    attention: int
    inner: int
    dropout: float = 0.1
    pool: str = "cls"
    whole_tables: bool = True
    """Whether a Synthesizer may have a score for every pair of positions."""


class Schedule(NamedTuple):
    """How a task is trained."""

    steps: int
    warmup: int
    lr: float
    batch: int
    decay: float
    clip: float | None = None


TEXTS = {
    "listops": Shape(4, 512, 8, 512, 1024),
    "text": Shape(4, 256, 4, 256, 1024),
    "retrieval": Shape(4, 128, 4, 128, 512, pool="first"),
}
"""Of all variants: no file says anything else."""
WIDE = Shape(1, 128, 8, 64, 128, 0.3)
IMAGES = {
    "transformer": (Shape(1, 32, 1, 32, 64, 0.3), Shape(1, 128, 4, 64, 128, 0.2, "mean")),
    "local": (WIDE._replace(heads=2, pool="mean"), Shape(2, 64, 4, 32, 64, 0.1, "mean")),
    "sparse": (WIDE, Shape(1, 32, 8, 16, 32, 0.2, "mean")),
    "longformer": (Shape(4, 128, 4, 64, 128, 0.3, "mean"), Shape(2, 32, 2, 16, 32, 0.1, "mean")),
    "linformer": (WIDE, Shape(1, 32, 2, 16, 32, 0.2, "mean")),
    "reformer": (Shape(4, 64, 8, 32, 64, 0.3), Shape(2, 64, 8, 32, 64, 0.2, "mean")),
    "sinkhorn": (Shape(1, 32, 1, 32, 64, 0.1), Shape(2, 32, 4, 16, 64, 0.2, "mean")),
    "synthesizer": (WIDE, Shape(2, 64, 4, 32, 64, 0.2, "mean")),
    "bigbird": (WIDE._replace(heads=4), Shape(4, 64, 2, 32, 64, 0.2, "mean")),
    "linear-transformer": (WIDE, Shape(1, 128, 2, 64, 128, 0.2, "mean")),
    "performer": (WIDE, Shape(4, 32, 8, 16, 32, 0.2, "mean")),
}
"""Image and Pathfinder."""
PATH_X = Shape(1, 32, 2, 16, 32, 0.1, "mean")
"""The only one for Path-X is the Transformer's."""
SCHEDULES = {
    "listops": Schedule(5_000, 1_000, 0.05 / 1_000**0.5, 32, 0.1),
    "text": Schedule(20_000, 8_000, 0.05 / 8_000**0.5, 32, 0.1),
    "retrieval": Schedule(5_000, 8_000, 0.05 / 8_000**0.5, 32, 0.1),
    "image": Schedule(35_000, 175, 5e-4, 256, 0.0),
    "pathfinder": Schedule(62_400, 312, 1e-3, 512, 0.0),
    "path-x": Schedule(500_000, 2_500, 1e-3, 64, 0.0, 1.0),
}
ARENA_DIFFERENCES = (
    "learned positions everywhere; after its warm-up the learning rate falls by a cosine, also on texts, where it was "
    "published to fall with the inverse root of the step",
)
NYSTROM = Shape(2, 64, 2, 64, 128, 0.1, "mean")
NYSTROM_SCHEDULES = {
    "listops": Schedule(5_000, 1_000, 1e-4, 32, 0.0),
    "text": Schedule(20_000, 8_000, 1e-4, 32, 0.0),
    "retrieval": Schedule(30_000, 800, 1e-4, 32, 0.0),
    "image": Schedule(35_000, 175, 1e-4, 256, 0.0),
    "pathfinder": Schedule(62_400, 312, 1e-4, 256, 0.0),
}
LUNA_SHAPES = {
    "listops": Shape(1, 512, 8, 512, 2048, 0.1),
    "text": Shape(4, 256, 4, 256, 1024, 0.3),
    "retrieval": Shape(4, 128, 4, 128, 512, 0.1),
    "image": Shape(1, 64, 8, 64, 128, 0.3, "mean"),
    "pathfinder": Shape(1, 128, 4, 128, 128, 0.2, "mean"),
}
LUNA_SCHEDULES = {
    "listops": Schedule(5_000, 1_000, 1e-4, 32, 1e-4),
    "text": Schedule(20_000, 8_000, 5e-5, 32, 1e-4),
    "retrieval": Schedule(20_000, 8_000, 5e-4, 32, 1e-4),
    "image": Schedule(35_000, 4_000, 5e-3, 256, 0.0),
    "pathfinder": Schedule(62_500, 4_000, 1e-3, 512, 0.0),
}
SMALL_LR, SMALL_DECAY = 1e-3, 0.1


def _resized(size: Size) -> Shape:
    """A small model; all of them pool alike."""
    inner = size.expand * size.width
    return Shape(size.layers, size.width, size.heads, size.width, inner, 0.0, "mean", whole_tables=False)


Mixer = Callable[[Shape, int, str], Config]
"""The mixer for a shape, a length and a task."""


def _heads(shape: Shape) -> Config:
    return {"n_heads": shape.heads, "head_dim": shape.attention // shape.heads}


def _both(name: str, arguments: Mapping[str, object] = {}) -> Mixer:
    """A mixer that is told to read in both directions."""
    return lambda shape, length, task: of(name, {**_heads(shape), "causal": False, **arguments})


def _block(task: str) -> int:
    """Positions of a block: 50 of a text, 64 of an image."""
    return 64 if task in ("image", "pathfinder", "path-x") else 50


def _sparse(shape: Shape, length: int, task: str) -> Config:
    options = {"n_summary": 10, "summarise_first": True, "class_token": True}
    return of(
        "SparseAttention", {**_heads(shape), "pattern": "fixed", "stride": 50, "position": "none", "options": options}
    )


LONGEST_TABLE = 4100
"""Positions; a whole table of longer sequences has too many numbers."""


def _synthesizer(shape: Shape, length: int, task: str) -> Config:
    """A table of scores, on texts beside those of attention; factorised where a whole one has too many numbers."""
    whole = shape.whole_tables and length <= LONGEST_TABLE
    scores = {"random": "full" if whole else "factorised", "dot_product": task not in ("image", "pathfinder", "path-x")}
    return of("Synthesizer", {**_heads(shape), "max_length": length, "scores": scores, "causal": False})


def _reformer(shape: Shape, length: int, task: str) -> Config:
    """Ten buckets and one hash; each chunk, a tenth of the sequence, sees the one before it."""
    return of(
        "Reformer",
        {
            "n_heads": shape.heads,
            "n_buckets": 10,
            "n_hashes": 1,
            "window": -(-length // 10),
            "position": "none",
            "causal": False,
        },
    )


def _performer(shape: Shape, length: int, task: str) -> Config:
    """The published default, no random features; on ListOps softmax attention by those."""
    features = {} if task == "listops" else {"kernel": "relu", "directions": "none", "options": {"floor": 1e-3}}
    return of("Performer", {**_heads(shape), "causal": False, **features})


MIXERS: dict[str, Mixer] = {
    "transformer": _both("Attention", {"position": "none"}),
    "local": lambda shape, length, task: of(
        "LocalAttention", {**_heads(shape), "block_size": _block(task), "position": "none", "causal": False}
    ),
    "sparse": _sparse,
    "longformer": _both("Longformer", {"window": 512, "position": "none"}),
    "linformer": lambda shape, length, task: of("Linformer", {**_heads(shape), "max_length": length, "rank": 16}),
    "reformer": _reformer,
    "sinkhorn": lambda shape, length, task: of(
        "Sinkhorn",
        {"n_heads": shape.heads, "block_size": _block(task), "max_length": length, "position": "none", "causal": False},
    ),
    "synthesizer": _synthesizer,
    "bigbird": lambda shape, length, task: of("BigBird", {**_heads(shape), "block_size": 64, "position": "none"}),
    "linear-transformer": _both("LinearTransformer"),
    "performer": _performer,
    "fnet": lambda shape, length, task: of("FNet"),
    "nystromformer": lambda shape, length, task: of(
        "Nystromformer", {**_heads(shape), "n_landmarks": 128, "conv_width": 35}
    ),
    "luna": lambda shape, length, task: of("Luna", {"n_heads": shape.heads, "n_memory": 256}),
}


class Transformer(NamedTuple):
    """A variant of the Transformer."""

    name: str
    shapes: dict[str, Shape]
    schedules: dict[str, Schedule]
    source: str
    published: bool = True
    differences: tuple[str, ...] = ()
    options: Config = {}
    """Of the Backbone."""

    def recipe(self, task: str, size: Size | None = None) -> Recipe:
        """What it says for a task."""
        shape, said_of = row_for(self.shapes, task)
        schedule, _ = row_for(self.schedules, task)
        if size is not None:
            shape = _resized(size)
            schedule = schedule._replace(lr=SMALL_LR, decay=SMALL_DECAY)
        reading = reading_of(task, "arena", size)
        return Recipe(
            model=self.model(shape, reading, task),
            pipeline="arena",
            batch_size=schedule.batch,
            training=training(
                schedule.steps,
                schedule.warmup,
                float(f"{schedule.lr:.4g}"),
                schedule.decay,
                {"betas": [0.9, 0.98], "grad_clip": schedule.clip},
            ),
            source=self.source,
            published=self.published and said_of == task,
            said_of=said_of,
            differences=self.differences,
        )

    def model(self, shape: Shape, reading: Reading, task: str) -> Config:
        """The `model` section."""
        positions = reading.length + (shape.pool == "cls")
        expand, dropout = shape.inner / shape.width, shape.dropout
        channel_mixer = of("MLP", {"expand": expand, "activation": "gelu_tanh", "dropout": dropout})
        blocks = stack(
            (shape.layers, shape.width),
            MIXERS[self.name](shape, positions, task),
            channel_mixer,
            {"dropout": dropout, **self.options},
        )
        backbone = of("LearnedPositions", {"length": positions, "dropout": dropout, "backbone": blocks})
        widths = [shape.inner, shape.inner // 2] if reading.pair else [shape.inner]
        return classifier(reading, backbone, {"pool": shape.pool, "head": {"widths": widths, "activation": "relu"}})


def _arena(name: str, like: str | None = None) -> Transformer:
    """A variant of the Long Range Arena, or one that takes over the hyperparameters of another."""
    image, pathfinder = IMAGES[like or name]
    shapes = {**TEXTS, "image": image, "pathfinder": pathfinder}
    if name == "transformer":
        shapes["path-x"] = PATH_X
    source = ARENA_CODE if like is None else f"none is published; taken from {like}: {ARENA_CODE}"
    return Transformer(name, shapes, SCHEDULES, source, like is None, ARENA_DIFFERENCES)


TRANSFORMERS = {
    **{name: _arena(name) for name in IMAGES},
    "fnet": _arena("fnet", like="transformer"),
    "nystromformer": Transformer(
        "nystromformer",
        dict.fromkeys(NYSTROM_SCHEDULES, NYSTROM),
        NYSTROM_SCHEDULES,
        NYSTROM_CODE,
        differences=("the learning rate falls by a cosine instead of linearly",),
    ),
    "luna": Transformer(
        "luna",
        LUNA_SHAPES,
        LUNA_SCHEDULES,
        f"{LUNA_CODE}, with a memory of 256",
        differences=("the learning rate falls by a cosine instead of with the inverse root of the step",),
        options={"norm_position": "post"},
    ),
}
