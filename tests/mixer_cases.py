"""All configurations in which mixers are tested, collected from the modules in cases/."""

import importlib
from pathlib import Path

from cases import WIDTH, Cases, Learners

_MODULES = [
    importlib.import_module(f"cases.{path.stem}")
    for path in sorted((Path(__file__).parent / "cases").glob("*.py"))
    if path.stem != "__init__"
]
CASES: Cases = {name: build for module in _MODULES for name, build in module.CASES.items()}
FINITE_STATE: set[str] = {name for module in _MODULES for name in getattr(module, "FINITE_STATE", ())}
LEARNERS: Learners = {name: build for module in _MODULES for name, build in module.LEARNERS.items()}
DETECTORS: Learners = {name: build for module in _MODULES for name, build in getattr(module, "DETECTORS", {}).items()}

__all__ = ["CASES", "DETECTORS", "FINITE_STATE", "LEARNERS", "WIDTH"]
