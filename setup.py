"""Builds the C++ kernels of longreach/ops/csrc; everything else about the package is in pyproject.toml.

One shared library for each instruction set, with a plain C interface, so that one build serves every version of Python
and torch.  Without a compiler the package installs all the same, and runs on torch alone.
"""

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = sorted(str(path) for path in Path("longreach/ops/csrc").glob("*.cpp"))
HEADERS = sorted(str(path) for path in Path("longreach/ops/csrc").glob("*.h"))
COMMON = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wextra"]
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []
INSTRUCTION_SETS = {"avx512": ["-march=x86-64-v4"], "avx2": ["-march=x86-64-v3"], "baseline": []}


class BuildKernels(build_ext):
    """Compiles libraries that are not Python modules, under names that no version of Python is part of."""

    def get_ext_filename(self, fullname: str) -> str:
        *folders, name = fullname.split(".")
        return str(Path(*folders, f"{name}.so"))

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


class AnyPython(bdist_wheel):
    """The wheel depends on the platform but not on the version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def libraries() -> list[Extension]:
    """One for each instruction set of this kind of processor."""
    known = platform.machine() in ("x86_64", "AMD64")
    return [
        Extension(
            f"longreach.ops.kernels-{name}",
            SOURCES,
            depends=HEADERS,
            extra_compile_args=[*COMMON, *OPENMP, *flags],
            extra_link_args=OPENMP,
            language="c++",
            optional=True,
        )
        for name, flags in INSTRUCTION_SETS.items()
        if known or name == "baseline"
    ]


setup(ext_modules=libraries(), cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPython})
