"""Building the kernels again: what cannot be built, or was built from something else, is not used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from longreach.ops import native

WITH_KERNELS = pytest.mark.skipif(native.MISSING is not None, reason=f"{native.MISSING}")

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


def run(project: Path, *arguments: str, **environment: str) -> str:
    """What a command that ends well says about errors."""
    settings = os.environ | environment
    done = subprocess.run(arguments, cwd=project, capture_output=True, text=True, env=settings)
    assert done.returncode == 0, done.stderr
    return done.stderr


def build(project: Path, **environment: str) -> str:
    """What is said; without a compiler, too, the build ends well."""
    return run(project, sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", **environment)


def libraries(project: Path) -> set[str]:
    """Names of the libraries that are there."""
    return {path.stem for path in (project / "longreach/ops/kernels").iterdir()}


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
@pytest.mark.skipif("LONGREACH_KERNELS" in os.environ, reason="other kernels, or none, are asked for")
def test_where_there_is_a_compiler_there_are_kernels() -> None:
    """Without them all of their tests are skipped."""
    assert native.MISSING is None, f"{native.MISSING}; `make setup` says why"


@WITH_KERNELS
def test_a_build_that_fails_leaves_nothing_of_the_one_before(project: Path) -> None:
    source = project / "longreach/ops/csrc/digest.cpp"
    good = source.read_text()
    assert build(project) == ""
    assert set(native.instruction_sets()) <= libraries(project)
    source.write_text(good + "this is no C++")
    said = build(project)
    assert "error: expected" in said
    assert said.endswith("baseline were not built, longreach does without them\n")
    assert libraries(project) == set()
    source.write_text(good)
    assert build(project) == ""
    assert set(native.instruction_sets()) <= libraries(project)


def test_without_a_compiler_the_build_says_so(project: Path) -> None:
    said = build(project, CC="no-such-compiler", CXX="no-such-compiler")
    assert "no-such-compiler" in said
    assert "baseline were not built, longreach does without them" in said


@WITH_KERNELS
@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_only_kernels_that_were_built_count_as_made(project: Path) -> None:
    """And those that were not do not keep the rest from being made."""
    for name in ("Makefile", "README.md", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    (project / ".venv/bin").mkdir(parents=True)
    python = project / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (project / ".venv/installed").touch()
    said = run(project, "make", "setup", CC="no-such-compiler", CXX="no-such-compiler")
    assert "were not built" in said
    assert not (project / ".venv/kernels").exists()
    assert run(project, "make", "setup") == ""
    assert (project / ".venv/kernels").exists()


@WITH_KERNELS
def test_kernels_of_other_sources_are_not_used(project: Path) -> None:
    build(project)
    program = "from longreach.ops import native; print(native.MISSING)"
    settings = os.environ | {"LONGREACH_KERNELS": str(project / "longreach/ops/kernels"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=settings)
    assert "were built from other sources" in done.stdout, done.stderr
