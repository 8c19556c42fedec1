"""Builds the C++ kernels of longreach/ops/csrc; everything else about the package is in pyproject.toml.

One shared library for each instruction set, with a plain C interface, so that one build serves every version of Python
and torch.  Without a compiler the package installs all the same, and runs on torch alone.
"""

import hashlib
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError
from setuptools.modified import newer_group

SOURCES = sorted(str(path) for path in Path("longreach/ops/csrc").glob("*.cpp"))
HEADERS = sorted(str(path) for path in Path("longreach/ops/csrc").glob("*.h"))
COMMON = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wextra"]
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []
FOLDER = Path("longreach/ops/kernels")
DIGEST = hashlib.sha256(b"".join(Path(path).read_bytes() for path in sorted([*SOURCES, *HEADERS]))).hexdigest()
INSTRUCTION_SETS = {"avx512": ["-march=x86-64-v4"], "avx2": ["-march=x86-64-v3"], "baseline": []}


class BuildKernels(build_ext):
    """Compiles libraries that are not Python modules, into a folder that is no package, where nobody imports them."""

    def get_ext_filename(self, fullname: str) -> str:
        """Without the version of Python."""
        return f"{fullname.replace('.', '/')}.so"

    def copy_extensions_to_source(self) -> None:
        """Into the folder for them, which is in no checkout, instead of all that was there before."""
        FOLDER.mkdir(exist_ok=True)
        for library in self.extensions:
            Path(self.get_ext_filename(library.name)).unlink(missing_ok=True)
        super().copy_extensions_to_source()

    def build_extensions(self) -> None:
        """All sources of all libraries on all cores; a library that cannot be built is left out, and said so."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [
                [pool.submit(self.compile, source, library) for source in library.sources]
                for library in self.extensions
            ]
        failed = []
        for library, compiled in zip(self.extensions, jobs, strict=True):
            try:
                self.link([job.result() for job in compiled], library)
            except (CompileError, LinkError) as error:
                Path(self.get_ext_fullpath(library.name)).unlink(missing_ok=True)  # of an earlier build
                failed.append(library.name.rpartition(".")[2])
                sys.stderr.write(f"{error}\n")  # which is said though everything else be quiet
        if failed:
            sys.stderr.write(f"the kernels for {', '.join(failed)} were not built, longreach does without them\n")

    def compile(self, source: str, library: Extension) -> str:
        """The object of one source, in a folder of the library's own, because all libraries have the same sources."""
        folder = str(Path(self.build_temp, library.name))
        (target,) = self.compiler.object_filenames([source], output_dir=folder)
        is_digest = source.endswith("digest.cpp")  # always compiled: a source that was removed leaves nothing newer
        if self.force or is_digest or newer_group([source, *library.depends], target):
            flags = [*library.extra_compile_args, "-g1" if self.debug else "-g0"]
            macros = [("LONGREACH_DIGEST", f'"{DIGEST}"')] if is_digest else []
            self.compiler.compile([source], output_dir=folder, macros=macros, extra_postargs=flags)
        return target

    def link(self, objects: list[str], library: Extension) -> None:
        """One library."""
        target = self.get_ext_fullpath(library.name)
        if self.force or newer_group(objects, target):
            self.compiler.link_shared_object(objects, target, extra_postargs=library.extra_link_args, target_lang="c++")


class AnyPython(bdist_wheel):
    """The wheel depends on the platform but not on the version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def libraries() -> list[Extension]:
    """One for each instruction set of this kind of processor."""
    known = platform.machine() in ("x86_64", "AMD64")
    return [
        Extension(
            f"longreach.ops.kernels.{name}",
            SOURCES,
            depends=[*HEADERS, "setup.py"],
            extra_compile_args=[*COMMON, *OPENMP, *flags],
            extra_link_args=OPENMP,
            language="c++",
            optional=True,
        )
        for name, flags in INSTRUCTION_SETS.items()
        if known or name == "baseline"
    ]


setup(ext_modules=libraries(), cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPython})
