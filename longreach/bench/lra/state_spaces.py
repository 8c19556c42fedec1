"""Published hyperparameters of the state-space family: S4, S4D, DSS, S5 and Liquid-S4, and what takes over S4's.

The block of all of them is the joint one: x + channel_mixer(mixer(norm x)), batch norm, both directions.
"""

from collections.abc import Callable
from typing import NamedTuple

from longreach.bench.lra.recipes import Recipe, Size, classifier, of, reading_of, stack, training
from longreach.bench.lra.tasks import Config, Reading, row_for

S4_CODE = "github.com/state-spaces/s4, configs/experiment/lra (version 4)"
S4_OLD_CODE = "github.com/state-spaces/s4, the configurations of the first version"


class Row(NamedTuple):
    """A task's line in a table of hyperparameters."""

    layers: int
    width: int
    d_state: int
    dropout: float
    lr: float
    batch: int
    steps: int
    warmup: int
    decay: float
    prenorm: bool
    dt: tuple[float, float] = (1e-3, 1e-1)
    shared: int | None = None
    """Number of independent systems; None for one in each channel."""
    causal: bool = False
    pool: str = "mean"
    norm: str = "batch"


def _epochs(task: str, epochs: int, batch: int) -> int:
    """Steps."""
    examples = {"listops": 96_000, "text": 25_000, "retrieval": 147_086, "image": 45_000}
    return epochs * examples.get(task, 160_000) // batch


S4_ROWS = {
    "listops": Row(6, 256, 4, 0.0, 0.01, 32, 120_000, 12_000, 0.05, False, shared=1),
    "text": Row(6, 256, 4, 0.0, 0.01, 16, 50_000, 5_000, 0.05, True, shared=1),
    "retrieval": Row(6, 256, 4, 0.0, 0.01, 64, 50_000, 5_000, 0.05, True, shared=1),
    "image": Row(6, 512, 64, 0.1, 0.01, 50, 180_000, 18_000, 0.05, False, shared=1),
    "pathfinder": Row(6, 256, 64, 0.0, 0.004, 64, 500_000, 50_000, 0.05, True),
    "path-x": Row(6, 256, 64, 0.0, 0.001, 16, 500_000, 50_000, 0.05, True, dt=(1e-4, 1e-1)),
}
"""The learning rate of the systems is 0.001 everywhere, as the mixers ask for."""


def _first(task: str, epochs: int, row: Row) -> Row:
    return row._replace(steps=_epochs(task, epochs, row.batch))


DSS_ROWS = {
    task: _first(task, epochs, row)
    for task, epochs, row in (
        ("listops", 50, Row(6, 128, 64, 0.0, 0.01, 50, 0, 0, 0.01, False, causal=True)),
        ("text", 40, Row(4, 128, 64, 0.0, 0.01, 50, 0, 0, 0.0, True, causal=True, pool="last")),
        ("retrieval", 25, Row(6, 256, 64, 0.0, 0.002, 64, 0, 0, 0.0, True, causal=True)),
        ("image", 200, Row(6, 512, 64, 0.2, 0.004, 50, 0, 0, 0.01, False, causal=True)),
        ("pathfinder", 200, Row(6, 256, 64, 0.1, 0.004, 100, 0, 0, 0.0, True, causal=True, pool="last")),
        ("path-x", 35, Row(6, 256, 64, 0.0, 5e-4, 16, 0, 0, 0.0, True, dt=(1e-4, 1e-2), causal=True)),
    )
}
LIQUID_ROWS = {
    task: _first(task, epochs, row)
    for task, epochs, row in (
        ("listops", 40, Row(9, 128, 6, 0.01, 0.002, 12, 0, 0, 0.03, True, dt=(2e-3, 0.2), causal=True)),
        ("text", 50, Row(4, 128, 6, 0.1, 0.003, 8, 0, 0, 0.01, True, dt=(2e-3, 0.2), causal=True)),
        ("retrieval", 20, Row(6, 256, 64, 0.2, 0.005, 16, 0, 0, 0.05, True, causal=True)),
        ("image", 200, Row(6, 512, 512, 0.1, 0.01, 50, 0, 0, 0.03, False, dt=(2e-3, 0.2), norm="layer")),
        ("pathfinder", 200, Row(6, 256, 64, 0.0, 0.004, 4, 0, 0, 0.03, True, causal=True, pool="last")),
        ("path-x", 60, Row(6, 320, 64, 0.0, 0.001, 8, 0, 0, 0.05, True, dt=(1e-4, 0.1), causal=True)),
    )
}
LIQUID_ORDER = {"listops": 5, "text": 6, "retrieval": 2, "image": 3, "pathfinder": 2, "path-x": 2}
"""The degree p of the better kernel, PB."""


def _s5(epochs: int, task: str, row: Row, factor: float, warmup: int) -> Row:
    """S5 says its learning rate as a multiple of that of the systems, and its warm-up in epochs."""
    return row._replace(
        lr=round(row.lr * factor, 6), steps=_epochs(task, epochs, row.batch), warmup=_epochs(task, warmup, row.batch)
    )


S5_ROWS = {
    "listops": _s5(40, "listops", Row(8, 128, 16, 0.0, 1e-3, 50, 0, 0, 0.04, True), 3.0, 1),
    "text": _s5(35, "text", Row(6, 256, 192, 0.1, 1e-3, 50, 0, 0, 0.07, True), 4.0, 0),
    "retrieval": _s5(20, "retrieval", Row(6, 128, 256, 0.0, 1e-3, 32, 0, 0, 0.05, True), 2.0, 1),
    "image": _s5(250, "image", Row(6, 512, 384, 0.1, 1e-3, 50, 0, 0, 0.07, True), 4.5, 1),
    "pathfinder": _s5(200, "pathfinder", Row(6, 192, 256, 0.05, 9e-4, 64, 0, 0, 0.03, True), 5.0, 1),
    "path-x": _s5(75, "path-x", Row(6, 128, 256, 0.0, 6e-4, 32, 0, 0, 0.06, True, dt=(1e-4, 1e-1)), 3.0, 1),
}
S5_FORMS: dict[str, tuple[int, str, Config]] = {
    "listops": (8, "half_glu2", {"C_init": "lecun_normal", "groups": "fast_B"}),
    "text": (12, "half_glu2", {"C_init": "lecun_normal", "ordinary_dt": True}),
    "retrieval": (16, "half_glu1", {"ordinary_dt": True}),
    "image": (3, "half_glu1", {"C_init": "lecun_normal", "groups": "fast_B", "clip": True}),
    "pathfinder": (8, "half_glu1", {}),
    "path-x": (16, "half_glu1", {"C_init": "complex_normal", "groups": "decay_B"}),
}
"""Blocks, output stage, and the rest."""

Blocks = Callable[[Row, Reading, str], tuple[Config, Config]]
"""The mixer and the channel mixer, for a row of the task that is named."""


def _glu(row: Row) -> Config:
    return of("longreach.models.GLU", {"dropout": row.dropout})


def s4_blocks(name: str) -> Blocks:
    """S4 or S4D."""

    def blocks(row: Row, reading: Reading, task: str) -> tuple[Config, Config]:
        dt_min, dt_max = row.dt
        sizes = {"d_state": row.d_state, "n_ssm": row.shared, "dt_min": dt_min, "dt_max": dt_max}
        return of(name, {**sizes, "causal": row.causal}), _glu(row)

    return blocks


def dss_blocks(row: Row, reading: Reading, task: str) -> tuple[Config, Config]:
    """DSS with the softmax."""
    dt_min, dt_max = row.dt
    sizes = {"d_state": row.d_state, "max_length": reading.length + 1, "dt_min": dt_min, "dt_max": dt_max}
    return of("DSS", {**sizes, "version": "softmax", "causal": row.causal}), _glu(row)


def liquid_blocks(row: Row, reading: Reading, task: str) -> tuple[Config, Config]:
    """Liquid-S4 in the form PB."""
    dt_min, dt_max = row.dt
    order = LIQUID_ORDER[task]
    return of(
        "LiquidS4", {"d_state": row.d_state, "order": order, "dt_min": dt_min, "dt_max": dt_max, "causal": row.causal}
    ), _glu(row)


def s5_blocks(row: Row, reading: Reading, task: str) -> tuple[Config, Config]:
    """S5."""
    n_blocks, form, options = S5_FORMS[task]
    dt_min, dt_max = row.dt
    states = row.d_state if row.d_state % (2 * n_blocks) == 0 else 2 * n_blocks
    sizes = {"d_state": states, "n_blocks": n_blocks, "dt_min": dt_min, "dt_max": dt_max}
    return of("S5", {**sizes, "causal": row.causal, "options": options}), of(
        "S5Gate", {"form": form, "dropout": row.dropout}
    )


class StateSpace(NamedTuple):
    """A system whose blocks are like those of S4."""

    blocks: Blocks
    rows: dict[str, Row]
    source: str
    published: bool = True
    differences: tuple[str, ...] = ()
    options: Config = {}
    """Of the Backbone."""

    def recipe(self, task: str, size: Size | None = None) -> Recipe:
        """What it says for a task."""
        row, said_of = row_for(self.rows, task)
        if size is not None:
            row = row._replace(layers=size.layers, width=size.width, dropout=0.0, d_state=min(row.d_state, 64))
        reading = reading_of(task, "s4", size)
        mixer, channel_mixer = self.blocks(row, reading, said_of)
        place = {"layout": "joint", "norm": row.norm, "norm_position": "pre" if row.prenorm else "post"}
        backbone = stack(
            (row.layers, row.width), mixer, channel_mixer, {**place, "dropout": row.dropout, **self.options}
        )
        head = {"head": {"widths": [row.width], "activation": "gelu"}} if reading.pair else {}
        return Recipe(
            model=classifier(reading, backbone, {"pool": row.pool, **head}),
            pipeline="s4",
            batch_size=row.batch,
            training=training(row.steps, row.warmup, row.lr, row.decay, {"betas": [0.9, 0.999]}),
            source=self.source,
            published=self.published and said_of == task,
            said_of=said_of,
            differences=self.differences,
        )


STATE_SPACES = {
    "s4": StateSpace(s4_blocks("S4"), S4_ROWS, S4_CODE),
    "s4d": StateSpace(s4_blocks("S4D"), S4_ROWS, f"{S4_CODE}, with mode=diag"),
    "dss": StateSpace(
        dss_blocks,
        DSS_ROWS,
        f"github.com/ag1988/dss, which says {S4_OLD_CODE} with 64 complex states",
        differences=("the learning rate falls by a cosine instead of with a plateau of the validation",),
    ),
    "s5": StateSpace(
        s5_blocks,
        S5_ROWS,
        "arXiv:2208.04933, table of hyperparameters; github.com/lindermanlab/S5",
        differences=(
            "the systems learn with 0.001 on every task; published are 0.0009 and 0.0006 for Pathfinder, Path-X",
        ),
        options={"final_norm": False},
    ),
    "liquid-s4": StateSpace(
        liquid_blocks,
        LIQUID_ROWS,
        "arXiv:2209.12951, table of hyperparameters; github.com/raminmh/liquid-s4",
        differences=("7 states are 6: of an odd number the published code drops one",),
    ),
}
