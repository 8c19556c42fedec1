"""Linear, low-rank and Fourier variants of attention in the configurations in which they are tested."""

from collections.abc import Callable

from cases import WIDTH, Cases, Learners
from longreach.mixers import (
    GAU,
    CausalLuna,
    FNet,
    LinearTransformer,
    Linformer,
    Luna,
    Nystromformer,
    Performer,
    PerformerOptions,
    Synthesizer,
    SynthesizerScores,
)
from longreach.mixers.performer import Kernel


def other_kernel(kernel: Kernel, *, causal: bool, normalise: bool = True) -> Callable[[], Performer]:
    """A Performer that does not estimate softmax."""
    options = PerformerOptions(floor=1e-3, normalise=normalise)
    return lambda: Performer(WIDTH, n_heads=2, kernel=kernel, causal=causal, options=options)


OTHER_KERNELS: Cases = {
    "squared-relu": other_kernel("squared_relu", causal=True),
    "elu": other_kernel("elu", causal=False),
    "gelu": other_kernel("gelu", causal=True, normalise=False),
    "exp": other_kernel("exp", causal=False),
    "sigmoid": other_kernel("sigmoid", causal=True),
    "tanh": other_kernel("tanh", causal=False, normalise=False),
    "cos": other_kernel("cos", causal=True, normalise=False),
    "sin": other_kernel("sin", causal=False, normalise=False),
    "identity": other_kernel("identity", causal=True, normalise=False),
}

CASES: Cases = {
    "linear-transformer": lambda: LinearTransformer(WIDTH, n_heads=2),
    "linear-transformer-bidirectional": lambda: LinearTransformer(
        WIDTH, n_heads=2, head_dim=3, causal=False, epsilon=1e-3, bias=True
    ),
    "performer": lambda: Performer(WIDTH, n_heads=2),
    "performer-floor": lambda: Performer(
        WIDTH,
        n_heads=2,
        n_directions=2,
        directions="orthogonal-unit",
        bias=True,
        options=PerformerOptions(floor=0.1, least_sum=0.2),
    ),
    "performer-bidirectional": lambda: Performer(
        WIDTH, n_heads=2, head_dim=3, directions="independent", causal=False, bias=True
    ),
    "performer-trigonometric": lambda: Performer(WIDTH, n_heads=1, kernel="trigonometric"),
    "performer-trigonometric-sums": lambda: Performer(
        WIDTH, n_heads=2, kernel="trigonometric", options=PerformerOptions(normalise=False)
    ),
    "performer-positive-sums": lambda: Performer(WIDTH, n_heads=2, options=PerformerOptions(normalise=False)),
    "performer-relu": lambda: Performer(
        WIDTH, n_heads=2, kernel="relu", directions="none", options=PerformerOptions(floor=1e-3, least_sum=0.0)
    ),
    "linformer": lambda: Linformer(WIDTH, max_length=36, rank=3, n_heads=2),
    "linformer-heads": lambda: Linformer(WIDTH, max_length=36, rank=5, n_heads=2, sharing="heads", dropout=0.1),
    "linformer-unshared": lambda: Linformer(
        WIDTH, max_length=36, rank=4, n_heads=2, head_dim=3, sharing="none", bias=True
    ),
    "synthesizer": lambda: Synthesizer(WIDTH, max_length=36, n_heads=2),
    "synthesizer-full": lambda: Synthesizer(
        WIDTH, max_length=36, n_heads=2, scores=SynthesizerScores(random="full", dot_product=True), dropout=0.1
    ),
    "synthesizer-dense": lambda: Synthesizer(
        WIDTH, max_length=36, n_heads=2, head_dim=3, bias=True, scores=SynthesizerScores(random="none", dense=True)
    ),
    "synthesizer-bidirectional": lambda: Synthesizer(
        WIDTH, max_length=36, n_heads=2, causal=False, scores=SynthesizerScores(rank=2, dense=True, dot_product=True)
    ),
    "nystromformer": lambda: Nystromformer(WIDTH, n_landmarks=3, n_heads=2, conv_width=3, bias=True),
    "nystromformer-plain": lambda: Nystromformer(
        WIDTH, n_landmarks=5, n_heads=2, head_dim=3, n_iterations=3, conv_width=None
    ),
    "luna": lambda: Luna(WIDTH, n_memory=3, n_heads=2),
    "luna-untied": lambda: Luna(
        WIDTH, n_memory=5, n_heads=4, n_pack_heads=2, tie_keys_values=False, bias=False, dropout=0.1
    ),
    "causal-luna": lambda: CausalLuna(WIDTH, n_memory=3, n_heads=2),
    "causal-luna-untied": lambda: CausalLuna(WIDTH, n_memory=5, n_heads=4, tie_keys_values=False, bias=False),
    "gau": lambda: GAU(WIDTH, max_length=36, d_key=4),
    "gau-bidirectional": lambda: GAU(
        WIDTH, max_length=36, d_key=6, d_value=5, causal=False, attention_dropout=0.1, hidden_dropout=0.1
    ),
    "fnet": lambda: FNet(WIDTH),
    "fnet-sums": lambda: FNet(WIDTH, normalisation="none"),
    **{f"performer-{name}": build for name, build in OTHER_KERNELS.items()},
}

FINITE_STATE = {"linear-transformer", "causal-luna", "causal-luna-untied"} | {
    name for name in CASES if name.startswith("performer")
}

LEARNERS: Learners = {
    "Synthesizer": lambda width: Synthesizer(width, max_length=24, n_heads=2),
}
DETECTORS: Learners = {
    "CausalLuna": lambda width: CausalLuna(width, n_heads=2),
    "FNet": FNet,
    "GAU": lambda width: GAU(width, max_length=24, d_key=16),
    "Luna": lambda width: Luna(width, n_heads=2),
    "Nystromformer": lambda width: Nystromformer(width, n_landmarks=8, n_heads=2, conv_width=3),
    "LinearTransformer": lambda width: LinearTransformer(width, n_heads=2),
    "Linformer": lambda width: Linformer(width, max_length=24, rank=8, n_heads=2),
    "Performer": lambda width: Performer(width, n_heads=2),
}
