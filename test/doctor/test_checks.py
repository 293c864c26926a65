"""Checks of versions and GPUs, on artificial findings."""

import re
from pathlib import Path

import pytest
from pinned import pinned_only

from icefall_kd.doctor import checks
from icefall_kd.doctor.checks import diagnose, parse_version
from icefall_kd.doctor.packages import PACKAGES, Finding

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pinned_only


def working() -> dict:
    """Return findings of the pinned versions, without a problem."""
    findings = {n: Finding(p.pin) for n, p in PACKAGES.items()}
    findings["torch"].info = {"cuda": "11.7", "gpu": None}
    findings["k2"].info = {"with_cuda": True}
    return findings


def with_gpu(arch: str, arch_list: list) -> dict:
    """Return findings of a torch with code for ``arch_list`` on a GPU ``arch``."""
    findings = working()
    info = {"gpu": "a GPU", "arch": arch, "arch_list": arch_list}
    findings["torch"].info.update(info)
    return findings


@pytest.mark.parametrize(
    "arch, arch_list, ok",
    [
        ("sm_80", ["sm_70", "sm_80"], True),
        ("sm_89", ["sm_80", "sm_86"], True),
        ("sm_80", ["sm_86"], False),
        ("sm_90", ["sm_80", "sm_86"], False),
        ("sm_90", ["sm_86", "compute_86"], True),
        ("sm_120", ["sm_90", "sm_100"], False),
    ],
)
def test_torch_must_have_code_for_the_gpu(arch, arch_list, ok):
    problems = diagnose(with_gpu(arch, arch_list))
    assert [p.subject for p in problems] == ([] if ok else ["torch"])


def test_a_gpu_needs_a_k2_with_cuda():
    findings = with_gpu("sm_80", ["sm_80"])
    findings["k2"].info = {"with_cuda": False}
    (problem,) = diagnose(findings)
    assert "without CUDA" in problem.what and not problem.required


def test_each_missing_package_is_a_problem():
    findings = working()
    for name in ("six", "onnx", "lhotse"):
        findings[name] = Finding()
    assert {p.subject for p in diagnose(findings)} == {"six", "onnx", "lhotse"}


def test_an_optional_package_may_be_missing_but_not_broken():
    findings = working()
    findings["transformers"] = Finding("4.60.0")
    findings["kaldifeat"] = Finding("1.24", "ImportError: libkaldifeat_core.so")
    problems = diagnose(findings)
    assert {p.subject for p in problems} == {"transformers", "kaldifeat"}
    assert not any(p.required for p in problems)


def test_a_k2_of_another_python_is_replaced_by_the_pinned_wheel():
    findings = working()
    findings["k2"] = Finding("1.23.4", "ModuleNotFoundError: No module named '_k2'")
    (problem,) = diagnose(findings)
    assert problem.remedy.endswith("--no-deps -r local/k2_wheel.txt")
    (pin,) = re.findall(r"^k2==(\S+)", (ROOT / "local/k2_wheel.txt").read_text(), re.M)
    assert pin == PACKAGES["k2"].pin


@pytest.mark.parametrize(
    "name, version", [("torch", "1.10.0"), ("onnx", "1.19.0"), ("torchaudio", "0.12.1")]
)
def test_a_wrong_version_is_one_problem(name, version):
    findings = working()
    findings[name] = Finding(version)
    assert [p.subject for p in diagnose(findings)] == [PACKAGES[name].dist]


def test_torch_2_allows_newer_packages(monkeypatch):
    built = {"torch": "2.3.0+cu118", "torch_cuda": "11.8"}
    monkeypatch.setattr(checks, "k2_built_for", built.get)
    findings = working()
    for name, version in [
        ("torch", "2.3.0"),
        ("torchaudio", "2.3.0"),
        ("lhotse", "1.33.0"),
        ("numpy", "2.1.0"),
        ("onnx", "1.19.0"),
        ("google.protobuf", "6.1.0"),
        ("transformers", "4.60.0"),
    ]:
        findings[name] = Finding(version)
    for name in ("torchaudio", "six"):
        findings[name] = Finding()
    findings["torch"].info = {"cuda": "11.8"}
    assert diagnose(findings) == []
    assert diagnose({**findings, "k2": Finding()}) == []
    findings["torch"].info = {"cuda": "12.1"}
    (problem,) = diagnose(findings)
    assert "built for CUDA 11.8" in problem.what and "torch2.3.0" in problem.remedy


def test_the_pins_are_those_of_requirements_txt():
    text = (ROOT / "requirements.txt").read_text()
    pins = dict(re.findall(r"^([A-Za-z0-9_-]+)==(\S+)", text, re.M))
    for package in PACKAGES.values():
        if package.is_required:
            assert pins.pop(package.dist) == package.pin
    # The remaining pins are optional packages and tools.
    parts = {p.dist for p in PACKAGES.values() if not p.is_required} - {"kaldifeat"}
    tools = {"setuptools", "wheel", "pytest", "pytest-xdist", "hypothesis", "ruff"}
    assert set(pins) - parts == tools
    assert parts <= set(pins)


@pytest.mark.parametrize(
    "text, expected",
    [("1.24.4.dev2+cu", (1, 24, 4)), ("2.0.1+cpu", (2, 0, 1)), (None, ())],
)
def test_a_version_is_parsed_up_to_the_first_word(text, expected):
    assert parse_version(text) == expected
