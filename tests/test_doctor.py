"""The doctor knows every operator and every dependency, and gives a remedy for what is missing."""

import importlib
import json
import pkgutil

import pytest
import torch
from laws import leaves

import longreach.ops
from longreach.cli import diagnosis, typical_calls
from longreach.cli.main import run
from longreach.ops import OPS, native, use_backend
from longreach.ops.triton import available


@pytest.fixture(autouse=True)
def every_operator() -> None:
    """Operators make themselves known when their module is imported."""
    for module in pkgutil.iter_modules(longreach.ops.__path__, "longreach.ops."):
        importlib.import_module(module.name)


def test_every_operator_has_a_typical_call_that_it_can_run(monkeypatch) -> None:
    """At a small size the call works with every backend that does not refuse it."""
    for name, size in [("WIDTH", 8), ("LENGTH", 16), ("HEADS", 2), ("STATE", 4), ("VOCABULARY", 11)]:
        monkeypatch.setattr(typical_calls, name, size)
    assert set(typical_calls.TYPICAL_CALLS) == set(OPS)
    for name, operator in OPS.items():
        arguments = typical_calls.TYPICAL_CALLS[name](torch.device("cpu"))
        for backend in operator.backends:
            if operator.refusal(backend, *arguments) is None:
                with use_backend(**{name: backend}):
                    result = operator(*arguments)
                    results = leaves(result if isinstance(result, tuple) else (result,))
                    assert all(tensor.isfinite().all() for tensor in results)


def test_it_says_what_runs_and_why_not_the_others() -> None:
    found = diagnosis.operator_backends()
    assert set(found) == set(OPS)
    for name, operator in found.items():
        assert {operator["takes"], *operator["others"]} == set(OPS[name].backends)
    with use_backend(long_conv="reference"):
        others = {"fft": None, "native": native.MISSING}
        others["triton"] = available.MISSING or "runs on a GPU, the input is on cpu"
        assert diagnosis.operator_backends()["long_conv"] == {"takes": "reference", "others": others}


def test_every_dependency_is_looked_for() -> None:
    packages = diagnosis.installed_packages()
    assert packages["torch"] == {"version": torch.__version__, "extra": ""}
    assert packages["pytest"] == {"version": pytest.__version__, "extra": "dev"}
    assert {package["extra"] for package in packages.values()} == {"", *diagnosis.EXTRAS}


def test_what_is_missing_comes_with_its_cost_and_remedy(monkeypatch) -> None:
    missing = {"zstandard": "", "tensorboard": "log", "rich": ""}
    monkeypatch.setattr(diagnosis, "_version", lambda package: None if package in missing else "1")
    advice = diagnosis.diagnose().advice
    assert "needed and not installed: rich, zstandard; install longreach again" in advice
    assert any(
        line.startswith("tensorboard not installed (no TensorBoard files") and "longreach[log]" in line
        for line in advice
    )
    assert not any("pytest" in line for line in advice)


GOOD = {
    "threads": 2,
    "cores_allowed": 2,
    "memory": 8 << 30,
    "mkl": True,
    "gpu": None,
    "kernels": "avx2",
    "kernels_missing": None,
    "kernels_best": "avx2",
    "triton": "3",
    "triton_interpreted": False,
    "instructions": ["avx2", "amx_bf16"],
    "nvidia_device": False,
    "cuda_build": None,
}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"threads": 8}, "OMP_NUM_THREADS=2"),
        ({"memory": 2 << 30}, "task.batch_size"),
        ({"mkl": False}, "MKL"),
        ({"gpu": "some", "triton": None}, "Triton is not installed"),
        ({"triton_interpreted": True}, "unset it"),
        ({"kernels": None, "kernels_missing": "there are no C++ kernels"}, "2 to 4 times as long"),
        ({"kernels": "baseline"}, "not built for avx2"),
        ({"instructions": ["avx2"]}, "bfloat16"),
        ({"nvidia_device": True}, "built for the CPU only"),
        ({"nvidia_device": True, "cuda_build": "12.8"}, "built for CUDA 12.8"),
    ],
)
def test_each_weakness_of_the_machine_is_told(change: dict, word: str) -> None:
    assert diagnosis._machine_advice(GOOD) == []
    (line,) = diagnosis._machine_advice(GOOD | change)
    assert word in line


def test_the_command_prints_tables_or_json(capsys) -> None:
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in (torch.__version__, "long_conv", "instructions", "cores"):
        assert word in text
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"packages", "machine", "operators", "advice"}
    assert found["machine"]["threads"] == torch.get_num_threads()
