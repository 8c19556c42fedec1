"""The package as it is installed: from a source archive, with a compiler and without one.

Nothing is downloaded: what the package depends on is taken from the environment of the tests.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
DISTRIBUTED = ["longreach", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt"]

USES_THE_KERNELS = """
import torch
from longreach.ops import OPS, long_conv, native
assert native.MISSING is None, native.MISSING
u, kernel = torch.randn(2, 3, 100, dtype=torch.float64), torch.randn(3, 100, dtype=torch.float64)
assert long_conv.choose(u, kernel) == "native"
torch.testing.assert_close(long_conv(u, kernel), OPS["long_conv"].backends["reference"](u, kernel))
"""

RUNS_ON_TORCH = """
import torch
import longreach.models
from longreach.cli import typical_calls as calls
from longreach.ops import OPS, native
calls.WIDTH, calls.LENGTH, calls.HEADS, calls.STATE, calls.VOCABULARY = 8, 16, 2, 4, 11
assert "there are no C++ kernels" in native.MISSING
for name, operator in OPS.items():
    arguments = calls.TYPICAL_CALLS[name](torch.device("cpu"))
    assert operator.choose(*arguments) != "native"
    operator(*arguments)
"""


def run(arguments: list[str | Path], **settings: object) -> str:
    """What a program prints; its complaints if it fails."""
    done = subprocess.run([str(x) for x in arguments], capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, made of a copy that holds nothing built."""
    copy, target = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("archive")
    for name in DISTRIBUTED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "kernels"))
        else:
            shutil.copy(ROOT / name, copy)
    program = f"from setuptools.build_meta import build_sdist; build_sdist({str(target)!r})"
    run([sys.executable, "-c", program], cwd=copy)
    (path,) = target.glob("longreach-*.tar.gz")
    return path


def install(archive: Path, folder: Path, **environment: str) -> Path:
    """Builds a wheel from the archive and installs it into an empty folder, which is returned with the wheel in it."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, archive]
    run([*pip, *wheel], env=os.environ | environment)
    (path,) = folder.glob("*.whl")
    run([*pip, "install", "--no-deps", "--target", folder / "installed", path])
    return path


def python(folder: Path, *arguments: str) -> str:
    """What Python prints in another working directory; all it finds is the package and what that depends on."""
    paths = os.pathsep.join([str(folder / "installed"), sysconfig.get_path("purelib")])
    return run([sys.executable, "-S", *arguments], cwd=folder, env={"PATH": os.environ["PATH"], "PYTHONPATH": paths})


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no compiler")
def test_the_wheel_brings_its_kernels(archive: Path, tmp_path: Path) -> None:
    wheel = install(archive, tmp_path)
    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    assert not list((tmp_path / "installed").rglob("*.cpp"))
    assert (tmp_path / "installed/longreach/py.typed").exists()
    assert str(tmp_path) in python(tmp_path, "-c", "import longreach; print(longreach.__file__)")
    python(tmp_path, "-c", USES_THE_KERNELS)
    assert "compiled for" in python(tmp_path, "-m", "longreach", "doctor")


def test_it_installs_without_a_compiler(archive: Path, tmp_path: Path) -> None:
    install(archive, tmp_path, CC="/none", CXX="/none")
    python(tmp_path, "-c", RUNS_ON_TORCH)
    found = " ".join(python(tmp_path, "-m", "longreach", "doctor").split())
    assert "there are no C++ kernels" in found
    assert "times as long: install longreach where there is a C++ compiler" in found
