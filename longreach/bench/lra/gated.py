"""Hyperparameters of Mega, as published, and of its predecessor GAU and of RWKV, for which there are none.

Mega: x + mixer(norm x), then x + MLP(norm x), or the norms behind the sums; both directions, no positions but those of
the attention's bias.  Chunks of 128 (Path-X: 4,096) are Mega-chunk, all positions in one are Mega.
"""

from typing import NamedTuple

from longreach.bench.lra.recipes import Recipe, Size, classifier, of, reading_of, stack, training
from longreach.bench.lra.state_spaces import S4_CODE, S4_ROWS
from longreach.bench.lra.tasks import Config, Reading, row_for

MEGA_CODE = "github.com/facebookresearch/mega, examples/mega/README.lra.md and fairseq/models/lra/model.py"


class MegaRow(NamedTuple):
    """A task's line in the table."""

    width: int
    d_value: int
    d_key: int
    layers: int
    norm: str
    weighting: str
    prenorm: bool
    taps: int | None
    """Of the moving averages; None for no end."""
    lr: float
    warmup: int
    steps: int
    batch: int
    decay: float


MEGA_ROWS = {
    "listops": MegaRow(80, 160, 64, 6, "layer", "softmax", False, 1024, 1e-3, 3_000, 90_000, 64, 0.01),
    "text": MegaRow(128, 256, 64, 4, "scale", "softmax", False, None, 4e-3, 10_000, 25_000, 50, 0.01),
    "retrieval": MegaRow(128, 256, 64, 6, "scale", "softmax", False, None, 3e-3, 10_000, 91_960, 64, 0.04),
    "image": MegaRow(160, 320, 96, 8, "batch", "laplace", True, None, 1e-2, 9_000, 180_000, 50, 0.02),
    "pathfinder": MegaRow(128, 256, 64, 6, "batch", "laplace", True, None, 1e-2, 50_000, 250_000, 128, 0.01),
    "path-x": MegaRow(64, 128, 32, 4, "batch", "laplace", True, 4096, 1e-2, 25_000, 125_000, 128, 0.01),
}
CHUNKS = {"path-x": 4096}
CHUNK = 128
OTHER_LR = 1e-3
MEGA_DIFFERENCES = (
    "the learning rate falls by a cosine instead of linearly",
    "pixels are scaled as S4 scales them, in Pathfinder to [0, 1] instead of [-1, 1]",
)


class MegaSystem(NamedTuple):
    """Mega, in chunks or not."""

    chunked: bool

    def recipe(self, task: str, size: Size | None = None) -> Recipe:
        """What it says for a task."""
        row, said_of = row_for(MEGA_ROWS, task)
        if size is not None:
            row = row._replace(layers=size.layers, width=size.width, d_value=2 * size.width, d_key=size.width // 2)
        reading = reading_of(task, "s4", size)
        return Recipe(
            model=classifier(
                reading,
                self._backbone(row, task, reading.length + 1),
                {"head": {"widths": [row.d_value], "activation": "gelu"}},
            ),
            pipeline="s4",
            batch_size=row.batch,
            training=training(row.steps, row.warmup, row.lr, row.decay, {"betas": [0.9, 0.98]}),
            source=MEGA_CODE,
            published=said_of == task,
            said_of=said_of,
            differences=MEGA_DIFFERENCES,
        )

    def _backbone(self, row: MegaRow, task: str, length: int) -> Config:
        attention: Config = {"chunk_size": CHUNKS.get(task, CHUNK)} if self.chunked else {"chunk_size": None}
        if not self.chunked:
            attention["max_length"] = length
        options = {"kernel_length": row.taps, "norm": row.norm if row.prenorm else None}
        mixer = of(
            "Mega",
            {
                "d_value": row.d_value,
                "d_key": row.d_key,
                "d_state": 16,
                "weighting": row.weighting,
                "causal": False,
                **attention,
                "options": options,
            },
        )
        channel_mixer = of("MLP", {"expand": row.d_value / row.width, "activation": "silu"})
        place = {"norm": row.norm, "norm_position": "pre" if row.prenorm else "post"}
        return stack((row.layers, row.width), mixer, channel_mixer, place)


def _s4_recipe(task: str, backbone: Config, reading: Reading) -> Recipe:
    """A backbone with S4's schedule, at a learning rate that other blocks bear."""
    row, said_of = row_for(S4_ROWS, task)
    return Recipe(
        model=classifier(reading, backbone),
        pipeline="s4",
        batch_size=row.batch,
        training=training(row.steps, row.warmup, OTHER_LR, row.decay, {"betas": [0.9, 0.98]}),
        source=f"none is published; depth, width and steps are those of S4: {S4_CODE}; the learning rate is ours",
        published=False,
        said_of=said_of,
    )


class RWKVSystem(NamedTuple):
    """RWKV of a version, with its own blocks; it reads in one direction."""

    version: int

    def recipe(self, task: str, size: Size | None = None) -> Recipe:
        """What is taken for a task."""
        row, _ = row_for(S4_ROWS, task)
        layers, width = (row.layers, row.width) if size is None else size[:2]
        options = {} if width % 64 == 0 or self.version == 4 else {"options": {"head_dim": width // 4}}
        backbone = of("RWKV", {"d_model": width, "n_layers": layers, "version": self.version, **options})
        return _s4_recipe(task, backbone, reading_of(task, "s4", size))


class GAUSystem(NamedTuple):
    """Gated attention units, two in the place of a Transformer's layer."""

    def recipe(self, task: str, size: Size | None = None) -> Recipe:
        """What is taken for a task."""
        row, _ = row_for(S4_ROWS, task)
        layers, width = (row.layers, row.width) if size is None else size[:2]
        reading = reading_of(task, "s4", size)
        mixer = of("GAU", {"max_length": reading.length + 1, "d_key": max(32, width // 4), "causal": False})
        backbone = stack((layers, width), mixer, of("MLP", {"expand": 1}), {"norm": "layer"})
        return _s4_recipe(task, backbone, reading)


GATED = {
    "mega": MegaSystem(chunked=False),
    "mega-chunk": MegaSystem(chunked=True),
    "gau": GAUSystem(),
    "rwkv": RWKVSystem(4),
    "rwkv-5": RWKVSystem(5),
    "rwkv-6": RWKVSystem(6),
    "rwkv-7": RWKVSystem(7),
}
