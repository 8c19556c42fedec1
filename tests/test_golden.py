"""What the authors' own published code computed, ours computes: outputs, states and all gradients.

Each case is one .safetensors file: inputs, outputs, a cotangent, the published parameters and their gradients; the
constructor's arguments are in the metadata.  The loss is sum(output * cotangent), plus the same of a second output if
there is a cotangent for it ("output_p", "cotangent_p").  Set LONGREACH_GOLDEN to read
another folder of the same format.  What a file holds is compared, or named with a reason: nothing passes in silence.
"""

import importlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import where
from adapters import Declined, Published
from safetensors import safe_open
from torch import Tensor, nn

FOLDER = Path(os.environ.get("LONGREACH_GOLDEN", Path(__file__).parent / "golden"))
PATHS = sorted(FOLDER.rglob("*.safetensors"))
ADAPTERS = {path.stem for path in (Path(__file__).parent / "adapters").glob("*.py")} - {"__init__"}
PLANNED = {"butterfly", "monarch"} - ADAPTERS
"""Families of systems that are not in this release."""


class Tolerance(NamedTuple):
    """|actual - expected| <= absolute + relative * |expected| + of_largest * max |expected|."""

    absolute: float
    relative: float
    of_largest: float

    @classmethod
    def parse(cls, text: str) -> "Tolerance":
        """Read what a file states, for example "1e-9 (float64)" or "float64: atol=1e-9 rtol=1e-7"."""
        if text.startswith("exact"):
            return cls(0.0, 0.0, 0.0)
        if pair := re.search(r"atol=(\S+) rtol=([\d.e+-]+)", text):
            return cls(float(pair[1]), float(pair[2]), 0.0)
        if largest := re.match(r"(\S+) relative to max\|\.\|", text):
            return cls(0.0, 0.0, float(largest[1]))
        text = re.sub(r"^images: .*orientations: (\S+);.*", r"\1", text)  # ours meet the strictest of several
        both = re.match(r"(\d\S*)(?: \(float64\)| relative\b| for |$)", text)
        assert both, f"no rule for the tolerance {text!r}"
        return cls(float(both[1]), float(both[1]), 0.0)

    def check(self, actual: Tensor, expected: Tensor, what: str, rounding: float = 0.0) -> None:
        """Assert that `actual` is `expected`; numbers up to `rounding` are noise."""
        assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
        if expected.numel() == 0:
            return
        error = (actual - expected).abs()
        allowed = self.absolute + self.relative * expected.abs() + self.of_largest * expected.abs().max() + rounding
        assert (error <= allowed).all(), f"{what}: off by {error.max():.3g}, where {allowed.min():.3g} is allowed"


class Reads(Mapping[str, Tensor]):
    """Tensors by name; remembers which of them were looked at."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class WithWeights(nn.Module):
    """Runs `published.run` as a forward, so that torch can put the published weights in place of the module's own."""

    def __init__(self, published: Published) -> None:
        super().__init__()
        self.module = published.module.double().eval().to(where.device)
        self.run = published.run

    def forward(self, tensors: Reads) -> dict[str, Tensor]:
        """All results."""
        return self.run(self.module, tensors)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, where the tests run, and the metadata.

    Cloned: safetensors aligns to 8 bytes, at which complex arithmetic can crash.
    """
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).clone().to(where.device) for name in file.keys()}, file.metadata()  # noqa: SIM118


def check(published: Published, tensors: dict[str, Tensor], tolerance: Tolerance) -> None:
    """Assert that everything in the file comes out of ours too."""
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    leaves = {
        name: tensor.clone().requires_grad_() if name.startswith(("param/", "input")) and _is_float(tensor) else tensor
        for name, tensor in tensors.items()
    }
    parameters = Reads({n.removeprefix("param/"): t for n, t in leaves.items() if n.startswith("param/")})
    others = Reads({n: t for n, t in leaves.items() if not n.startswith(("param/", "grad"))})
    weights = {f"module.{name}": tensor for name, tensor in published.weights(parameters).items()}
    results = torch.func.functional_call(WithWeights(published), weights, (others,), strict=True)
    for name, result in results.items():
        tolerance.check(result, expected[name], name)
    gradients = [name for name in tensors if name.startswith("grad")]
    if gradients:
        wanted = [_leaf_of(name, published, leaves) for name in gradients]
        cotangents = [name for name in others if name.startswith("cotangent")]
        outputs = [results[name.replace("cotangent", "output")] for name in cotangents]
        found = torch.autograd.grad(outputs, wanted, [others[name] for name in cotangents], allow_unused=True)
        noise = 4 * torch.finfo(torch.float64).eps * max(_largest(expected[name]) for name in gradients)
        for name, leaf, gradient in zip(gradients, wanted, found, strict=True):
            actual = torch.zeros_like(leaf) if gradient is None else gradient
            tolerance.check(actual, expected[name], name, noise)  # one that is zero in theory is nothing but noise
    accounted = {f"param/{name}" for name in parameters.read | set(published.tied)} | others.read | set(results)
    missed = set(tensors) - accounted - set(gradients) - set(published.unchecked)
    assert not missed, f"in the file, but neither used nor compared: {sorted(missed)}"


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def _leaf_of(gradient: str, published: Published, leaves: dict[str, Tensor]) -> Tensor:
    """The tensor that "grad/NAME" (a parameter) or "grad_NAME" (an input) is the gradient of."""
    if gradient.startswith("grad_"):
        return leaves[gradient.removeprefix("grad_")]
    name = gradient.removeprefix("grad/")
    return leaves[f"param/{published.tied.get(name, name)}"]


def adapt(metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published thing that the metadata describes."""
    adapter = importlib.import_module(f"adapters.{metadata['system']}")
    return adapter.adapt(json.loads(metadata["config"]), metadata)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden(path: Path) -> None:
    tensors, metadata = load(path)
    if metadata["system"] in PLANNED:
        pytest.skip(f"planned: {metadata['system']} is not in this release")
    assert metadata["system"] in ADAPTERS, f"no adapter for the family {metadata['system']!r}, nor is it planned"
    published = adapt(metadata)
    if isinstance(published, Declined):
        pytest.skip(f"declined: {published.reason}")
    on_cpu = where.device.type == "cpu"
    with nullcontext() if on_cpu else where.device:  # adapters need not say where their own tensors are
        check(published, tensors, Tolerance.parse(metadata["tolerance"]))


def test_there_are_golden_files() -> None:
    assert PATHS, f"no golden files in {FOLDER}"


@pytest.mark.skipif("LONGREACH_GOLDEN" in os.environ, reason="another folder need not have all families")
def test_every_adapter_has_golden_files() -> None:
    assert {path.parent.name for path in PATHS} >= ADAPTERS


class Scale(nn.Module):
    """y = w x, the simplest thing that could have been published."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


HONEST = Published(Scale(), weights=lambda theirs: {"w": theirs["gain"]})
X, W, COTANGENT = (torch.arange(3.0, dtype=torch.float64) + i for i in range(3))
FILE = {
    "input": X, "param/gain": W, "output": W * X, "cotangent": COTANGENT,
    "grad_input": W * COTANGENT, "grad/gain": X * COTANGENT,
}  # fmt: skip


def test_check_accepts_what_is_right() -> None:
    check(HONEST, FILE, Tolerance(1e-9, 0.0, 0.0))


@pytest.mark.parametrize("name", ["output", "grad_input", "grad/gain"])
def test_check_sees_a_wrong_number(name: str) -> None:
    wrong = FILE | {name: FILE[name] + 1e-6}
    with pytest.raises(AssertionError, match=f"{name}: off by"):
        check(HONEST, wrong, Tolerance(1e-9, 0.0, 0.0))


def test_check_sees_what_an_adapter_leaves_out() -> None:
    with pytest.raises(AssertionError, match=r"neither used nor compared: \['kernel', 'param/bias'\]"):
        check(HONEST, FILE | {"kernel": W, "param/bias": W}, Tolerance(1e-9, 0.0, 0.0))
    listed = replace(HONEST, unchecked={"kernel": "not computed", "param/bias": "zero"})
    check(listed, FILE | {"kernel": W, "param/bias": W}, Tolerance(1e-9, 0.0, 0.0))


def test_check_sees_a_detached_weight() -> None:
    with pytest.raises(AssertionError, match="grad/gain"):
        check(replace(HONEST, weights=lambda theirs: {"w": theirs["gain"].detach()}), FILE, Tolerance(1e-9, 0, 0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exact (data format)", (0, 0, 0)),
        ("1e-9 (float64)", (1e-9, 1e-9, 0)),
        ("1e-6", (1e-6, 1e-6, 0)),
        ("1e-10 relative to max|.| (float64)", (0, 0, 1e-10)),
        ("1e-4 relative (float32 eig)", (1e-4, 1e-4, 0)),
        ("1e-9 relative", (1e-9, 1e-9, 0)),
        ("images: atol 2/255 (PIL); cmf/pmf/orientations: 1e-9; coordinates exact", (1e-9, 1e-9, 0)),
        ("1e-10 for A,B,P,W (1e-9 relative for N=64); invariants 1e-8", (1e-10, 1e-10, 0)),
        ("float64: atol=1e-9 rtol=1e-7", (1e-9, 1e-7, 0)),
        ("float64 (jax x64): atol=1e-9 rtol=1e-7", (1e-9, 1e-7, 0)),
    ],
)
def test_tolerances_are_read(text: str, expected: tuple[float, float, float]) -> None:
    assert Tolerance.parse(text) == expected


def test_an_unknown_tolerance_is_an_error() -> None:
    with pytest.raises(AssertionError, match="no rule"):
        Tolerance.parse("roughly")
