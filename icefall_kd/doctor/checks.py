"""Judge what the probe found: one table of checks, each a small function."""

import sys
from dataclasses import dataclass
from typing import Callable, Optional

from icefall_kd.doctor.rules import (check_python, check_numpy, check_torch, check_k2_torch, check_torchaudio, check_lhotse, check_onnx, check_protobuf, check_transformers, check_gpu, check_k2_cuda)
from icefall_kd.doctor.packages import PACKAGES, Package
from icefall_kd.doctor.probe import Finding
from icefall_kd.doctor.problem import (
    Findings,
    Problem,
    is_torch_1,
    k2_wheel,
    pinned,
    pinned_k2,
    pip_install,
)


@dataclass(frozen=True)
class Check:
    """A row of CHECKS: run unless one of ``needs`` has a problem already."""

    subject: str
    run: Callable[[Findings], Optional[Problem]]
    needs: tuple[str, ...] = ()


def is_absent(finding: Finding) -> bool:
    """Whether a package is not there at all, rather than there and broken."""
    return not finding.present and finding.error is None


def check_environment(findings: Findings) -> Optional[Problem]:
    """The Python that runs this is one that something was installed for."""
    if not all(is_absent(findings[name]) for name in ("numpy", "torch", "lhotse")):
        return None
    remedy = "bash local/install.sh; .venv/bin/python -m icefall_kd.bin.doctor"
    return Problem("environment", f"is empty: {sys.executable}", remedy)


def check_presence(package: Package, findings: Findings) -> Optional[Problem]:
    """A required package is there."""
    name = package.dist
    torch_2 = findings["torch"].present and not is_torch_1(findings)
    if package.torch_1_only and torch_2:
        return None
    if package.required and is_absent(findings[package.module]):
        what = f"is missing (needed for: {package.purpose})"
        remedy = pip_install(pinned(package.module))
        if name == "k2":
            remedy = k2_wheel(findings) if torch_2 else pinned_k2()
        return Problem(name, what, remedy)
    return None


def check_import(package: Package, findings: Findings) -> Optional[Problem]:
    """What is there can be imported."""
    finding = findings[package.module]
    name = package.dist
    if finding.error is None:
        return None
    if name == "kaldifeat":
        remedy = "source local/env.sh  (library path); if built for another torch:"
        remedy += " bash local/install_kaldifeat.sh"
    elif name == "k2" and finding.version == package.pin:
        remedy = pinned_k2()
    else:
        # Of the version that is there: whether it is the right one is another check.
        wanted = f"{name}=={finding.version}" if finding.version else name
        remedy = pip_install(wanted, flags="--force-reinstall --no-deps")
    what = f"cannot be imported: {finding.error}"
    return Problem(name, what, remedy, required=package.required)


def _presence_check(package: Package) -> Check:
    return Check(package.dist, lambda f: check_presence(package, f))


def _import_check(package: Package) -> Check:
    needs = tuple(PACKAGES[n].dist for n in package.needs)
    return Check(package.dist, lambda f: check_import(package, f), needs)


# Versions before imports: a wrong version is the reason for an import that fails.
_VERSION_CHECKS = [
    Check("python", check_python),
    Check("numpy", check_numpy, ("python",)),
    Check("torch", check_torch, ("python", "numpy")),
    Check("k2", check_k2_torch, ("python", "torch")),
    Check("torchaudio", check_torchaudio, ("torch",)),
    Check("lhotse", check_lhotse, ("torch",)),
    Check("onnx", check_onnx, ("numpy",)),
    Check("protobuf", check_protobuf, ("onnx",)),
    Check("transformers", check_transformers, ("torch",)),
]
_IMPORT_CHECKS = [_import_check(p) for p in PACKAGES.values()]  # numpy and torch first
CHECKS: list[Check] = [
    *_VERSION_CHECKS,
    *(_presence_check(p) for p in PACKAGES.values()),
    *_IMPORT_CHECKS[:2],
    Check("torch", check_gpu),
    *_IMPORT_CHECKS[2:],
    Check("k2", check_k2_cuda),
]


def diagnose(findings: Findings) -> list[Problem]:
    """Run all checks; one Problem at most for each subject, causes before effects."""
    empty = check_environment(findings)
    if empty is not None:
        return [empty]
    problems: list[Problem] = []
    tainted: set[str] = set()
    for check in CHECKS:
        if check.subject in tainted or tainted.intersection(check.needs):
            continue
        problem = check.run(findings)
        if problem is not None:
            problems.append(problem)
            tainted.update({problem.subject, *problem.taints})
    return problems
