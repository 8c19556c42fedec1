"""`longreach doctor`: what this installation has to work with, what is missing, and what that costs."""

import json

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from longreach.cli.command import Command
from longreach.cli.diagnosis import Diagnosis, diagnose


def add_arguments(parser: ArgumentParser) -> None:
    """Only the format."""
    parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")


def run(parsed: Namespace) -> int:
    """Print the diagnosis."""
    found = diagnose()
    console = Console(highlight=False, markup=False, soft_wrap=parsed.json)
    console.print(json.dumps(found._asdict(), indent=2) if parsed.json else tables(found))
    return 0


def tables(found: Diagnosis) -> RenderableType:
    """The diagnosis for people."""
    parts = [_machine(found), "", _packages(found), "", _operators(found), ""]
    return Group(*parts, *(Text(f"- {line}") for line in found.advice or ["nothing is missing"]))


def _machine(found: Diagnosis) -> Table:
    about = found.machine
    table = Table("this machine", "", title_justify="left")
    memory = f"{about['memory'] / 2**30:.1f} GiB" if about["memory"] else "unknown"
    libraries = [name for name in ("mkl", "mkldnn") if about[name]]
    for name, value in [
        ("longreach", about["longreach"]),
        ("python", about["python"]),
        ("torch", f"{about['torch']}, {'CUDA ' + about['cuda_build'] if about['cuda_build'] else 'CPU only'}"),
        ("system", about["system"]),
        ("processor", about["processor"] or "unknown"),
        ("cores", f"{about['cores']}, of which {about['cores_allowed']} may be used, by {about['threads']} threads"),
        ("memory", memory),
        ("instructions", f"{', '.join(about['instructions']) or 'unknown'}; torch uses {about['torch_kernels']}"),
        ("C++ kernels", f"compiled for {about['kernels']}" if about["kernels"] else "none"),
        ("GPU kernels", f"Triton {about['triton']}" if about["triton"] else "none"),
        ("libraries", ", ".join(libraries) or "none"),
        ("GPU", about["gpu"] or "none"),
    ]:
        table.add_row(name, value)
    return table


def _packages(found: Diagnosis) -> Table:
    table = Table("package", "version", "needed for")
    for name, package in sorted(found.packages.items(), key=lambda item: (item[1]["extra"] or "", item[0])):
        needed = f"extra: {package['extra']}" if package["extra"] else "everything"
        table.add_row(name, package["version"] or "not installed", needed)
    return table


def _operators(found: Diagnosis) -> Table:
    table = Table("operator", "runs on", "why not the others")
    for name, operator in found.operators.items():
        why = [f"{other}: {reason or 'slower'}" for other, reason in operator["others"].items()]
        table.add_row(name, operator["takes"], "\n".join(why) or "there are none")
    return table


COMMAND = Command("Show versions, processor, backends, and what is missing.", add_arguments, run)
