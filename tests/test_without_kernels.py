"""Without the compiled kernels everything means the same: laws and golden cases again, in a process that has none."""

import os
import subprocess
import sys
from pathlib import Path

import laws
import pytest
from mixer_cases import CASES

from longreach.ops import native

ROOT = Path(__file__).parent.parent
SHOWN = (laws.recurrent_equals_parallel, laws.chunked_equals_parallel, laws.gradients_agree, laws.padding_is_invisible)
FAMILIES = ("s4", "s4d", "hyena", "fftconv")


def selection() -> list[str]:
    """A few laws of the first case of each mixer, and all golden cases of some families."""
    first = {}
    for case, build in CASES.items():
        first.setdefault(type(mixer := build()), (case, [law for law in laws.laws_of(mixer) if law in SHOWN]))
    chosen = [
        f"tests/test_mixers.py::test_law[{case}-{law.__name__}]" for case, obeyed in first.values() for law in obeyed
    ]
    golden = [path for family in FAMILIES for path in sorted((ROOT / "tests/golden" / family).glob("*.safetensors"))]
    return chosen + [f"tests/test_golden.py::test_golden[{path.parent.name}/{path.stem}]" for path in golden]


@pytest.mark.slow
@pytest.mark.skipif(native.MISSING is not None, reason="all tests run without kernels here")
def test_laws_and_golden_cases_hold_on_torch_alone(tmp_path: Path) -> None:
    environment = {"env": os.environ | {"LONGREACH_KERNELS": str(tmp_path)}, "cwd": ROOT, "text": True}
    switched_off = "from longreach.ops import OPS, native; assert native.MISSING; print(len(OPS))"
    subprocess.run([sys.executable, "-c", switched_off], check=True, capture_output=True, **environment)
    arguments = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *selection()]
    done = subprocess.run(arguments, capture_output=True, **environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert len(selection()) > 100
