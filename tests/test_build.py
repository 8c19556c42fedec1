"""Building the kernels again: what cannot be built, or was built from something else, is not used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from longreach.ops import native

pytestmark = pytest.mark.skipif(native.MISSING is not None, reason=f"{native.MISSING}")

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The build as it is, of the smallest of its sources."""
    sources = tmp_path / "longreach/ops/csrc"
    sources.mkdir(parents=True)
    shutil.copy(ROOT / "setup.py", tmp_path)
    for name in ("vector.h", "digest.cpp"):
        shutil.copy(native.SOURCES / name, sources)
    return tmp_path


def build(project: Path) -> list[str]:
    """Names of the libraries that are there afterwards; without a compiler, too, the build ends well."""
    arguments = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(arguments, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return sorted(path.stem for path in (project / "longreach/ops/kernels").iterdir())


def test_a_build_that_fails_leaves_nothing_of_the_one_before(project: Path) -> None:
    source = project / "longreach/ops/csrc/digest.cpp"
    good = source.read_text()
    assert set(native.instruction_sets()) <= {*build(project)}
    source.write_text(good + "this is no C++")
    assert build(project) == []
    source.write_text(good)
    assert set(native.instruction_sets()) <= {*build(project)}


def test_kernels_of_other_sources_are_not_used(project: Path) -> None:
    build(project)
    program = "from longreach.ops import native; print(native.MISSING)"
    settings = os.environ | {"LONGREACH_KERNELS": str(project / "longreach/ops/kernels"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=settings)
    assert "were built from other sources" in done.stdout, done.stderr
