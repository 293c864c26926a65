"""Check the versions of the installed packages.

Each check takes the findings of :func:`.packages.import_packages` and returns a
:class:`Problem` or None.  :func:`diagnose` runs them all.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Callable, Optional

from icefall_kd.doctor.packages import PACKAGES, Finding, Package, k2_built_for

Findings = Mapping[str, Finding]

K2_WHEELS = "https://k2-fsa.github.io/k2/{}.html"


@dataclass(frozen=True)
class Problem:
    """One problem and its remedy.

    Attributes:
      subject: name of the package in the package index.
      what: description; the rest of a sentence that starts with the subject.
      remedy: command that solves the problem.
      required: False if only an optional feature fails.
      taints: other packages whose checks are skipped until this problem is solved.
    """

    subject: str
    what: str
    remedy: str
    required: bool = True
    taints: tuple[str, ...] = ()


def parse_version(version: Optional[str]) -> tuple[int, ...]:
    """Return the leading numbers of a version; empty if it is not installed.

    >>> parse_version("1.24.4.dev2+cu")
    (1, 24, 4)
    """
    parts = []
    for part in (version or "").split("+")[0].split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)


def pip_install(*requirements: str, flags: str = "") -> str:
    """Return the command that installs ``requirements`` into this environment."""
    words = [sys.executable, "-m pip install", flags, *(f'"{r}"' for r in requirements)]
    return " ".join(word for word in words if word)


def pinned(module: str) -> str:
    """Return the requirement of a module in requirements.txt."""
    package = PACKAGES[module]
    return f"{package.dist}=={package.pin}" if package.pin else package.dist


def install_pinned_k2() -> str:
    """Return the command that installs the pinned wheel of k2, chosen by its hash."""
    flags = "--force-reinstall --no-deps"
    return f"{sys.executable} -m pip install {flags} -r local/k2_wheel.txt"


def describe_k2_wheel(findings: Findings) -> str:
    """Return an instruction to install the wheel of k2 for the installed torch."""
    torch = findings["torch"]
    page = K2_WHEELS.format("cuda" if torch.info.get("cuda") else "cpu")
    return f"install the k2 wheel whose name ends in torch{torch.version} from {page}"


def match_k2_and_torch(findings: Findings, built: str) -> str:
    """Return the command that installs a k2 and a torch that match.

    Args:
      findings: findings of all packages.
      built: version of torch for which the installed k2 was built.
    """
    pin = PACKAGES["torch"].pin
    if findings["torch"].version == pin:
        return install_pinned_k2()
    if built.split("+")[0] == pin:
        return pip_install(pinned("torch"), pinned("torchaudio"))
    return describe_k2_wheel(findings)


def is_torch_1(findings: Findings) -> bool:
    """Return whether torch is 1.x, for which the package index has a wheel of k2."""
    return parse_version(findings["torch"].version)[:1] == (1,)


def is_missing(finding: Finding) -> bool:
    """Return whether a package is not installed; a broken one is not missing."""
    return not finding.is_installed and finding.error is None


def check_environment(findings: Findings) -> Optional[Problem]:
    """Check that this Python has any of the main packages."""
    if not all(is_missing(findings[name]) for name in ("numpy", "torch", "lhotse")):
        return None
    remedy = "bash local/install.sh; .venv/bin/python -m icefall_kd.bin.doctor"
    return Problem("environment", f"is empty: {sys.executable}", remedy)


def check_python(findings: Findings) -> Optional[Problem]:
    """Check that Python is at least 3.9, and 3.10 for the pinned wheel of k2."""
    version = sys.version_info[:2]
    text = ".".join(map(str, sys.version_info[:3]))
    remedy = "rm -r .venv; bash local/install.sh  (it finds Python 3.10)"
    if version < (3, 9):
        return Problem("python", f"is {text}, but must be 3.9 or newer", remedy)
    wheel, k2 = PACKAGES["k2"].pin, findings["k2"].version
    is_torch_2 = parse_version(findings["torch"].version) >= (2,)
    if version != (3, 10) and (k2 == wheel or (k2 is None and not is_torch_2)):
        what = f"is {text}, but the wheel of k2 {wheel} needs 3.10"
        return Problem("python", what, remedy, taints=("k2",))
    return None


def check_numpy(findings: Findings) -> Optional[Problem]:
    """Check that numpy is 1.x if torch is older than 2.3, which was built for it."""
    torch, numpy = findings["torch"].version, findings["numpy"].version
    if torch and parse_version(torch) < (2, 3) and parse_version(numpy) >= (2,):
        what = f"is {numpy}, but torch {torch} was built for numpy 1"
        return Problem("numpy", what, pip_install(pinned("numpy")))
    return None


def check_torch(findings: Findings) -> Optional[Problem]:
    """Check that torch is at least 1.13.1."""
    version = findings["torch"].version
    if version and parse_version(version) < (1, 13, 1):
        what = f"is {version}, but must be 1.13.1 or newer"
        fix = pip_install(pinned("torch"), pinned("torchaudio"))
        return Problem("torch", what, fix)
    return None


def check_gpu(findings: Findings) -> Optional[Problem]:
    """Check that torch has code for the GPU of this machine."""
    info = findings["torch"].info
    if not info.get("gpu"):
        return None
    generation = info["arch"][:-1]  # sm_86 runs code for sm_80
    built = [a for a in info["arch_list"] if a.startswith("sm_")]
    same = [a for a in built if a[:-1] == generation and a <= info["arch"]]
    has_ptx = any(a.startswith("compute_") for a in info["arch_list"])
    if same or has_ptx or not built:
        return None
    what = f"has no code for {info['gpu']} ({info['arch']}), only {' '.join(built)}"
    remedy = "install torch and k2 wheels for this GPU, see"
    remedy += f" {K2_WHEELS.format('cuda')}, or hide it: export CUDA_VISIBLE_DEVICES="
    return Problem("torch", what, remedy)


def check_k2_torch(findings: Findings) -> Optional[Problem]:
    """Check that k2 was built for the installed torch and its CUDA."""
    k2, torch = findings["k2"], findings["torch"]
    built = k2_built_for("torch")
    if not k2.is_installed or not torch.is_installed or built is None:
        return None
    fix = match_k2_and_torch(findings, built)
    if built.split("+")[0] != torch.version:
        what = f"{k2.version} was built for torch {built}, but torch is {torch.version}"
        return Problem("k2", what, fix, taints=("torch",))
    built_cuda, cuda = k2_built_for("torch_cuda"), torch.info.get("cuda")
    if built_cuda and cuda and built_cuda != cuda:
        what = f"{k2.version} was built for CUDA {built_cuda}, but torch has {cuda}"
        return Problem("k2", what, fix)
    return None


def check_k2_cuda(findings: Findings) -> Optional[Problem]:
    """Check that k2 was compiled with CUDA if the machine has a GPU."""
    k2, gpu = findings["k2"], findings["torch"].info.get("gpu")
    if not gpu or not k2.is_working or k2.info.get("with_cuda"):
        return None
    what = f"{k2.version} was compiled without CUDA, but the machine has {gpu}"
    return Problem("k2", what, describe_k2_wheel(findings), required=False)


def check_torchaudio(findings: Findings) -> Optional[Problem]:
    """Check that torchaudio has the release of torch: 0.13 for 1.13, 2.x for 2.x."""
    torch, audio = findings["torch"].version, findings["torchaudio"].version
    if not torch or not audio or parse_version(torch) >= (2, 9):
        return None
    major, minor = (*parse_version(torch), 0, 0)[:2]
    wanted = (0, minor) if major == 1 else (major, minor)
    if parse_version(audio)[:2] == wanted:
        return None
    release = f"torchaudio=={major}.{minor}.*"
    if is_torch_1(findings):
        release = pinned("torchaudio")
    what = f"is {audio}, which does not match torch {torch}"
    return Problem("torchaudio", what, pip_install(release, flags="--no-deps"))


def check_lhotse(findings: Findings) -> Optional[Problem]:
    """Check that lhotse is the pinned version, or with torch 2 at least that one."""
    version, torch = findings["lhotse"].version, findings["torch"].version
    pin = PACKAGES["lhotse"].pin
    if not parse_version(version):
        return None
    if parse_version(version) < parse_version(pin):
        what = f"is {version}, but must be {pin} or newer"
    elif is_torch_1(findings) and parse_version(version) > parse_version(pin):
        what = f"is {version}, whose samplers fail with torch {torch}"
    else:
        return None
    return Problem("lhotse", what, pip_install(pinned("lhotse")))


def check_protobuf(findings: Findings) -> Optional[Problem]:
    """Check that protobuf is older than 5 if onnx is older than 1.18."""
    protobuf, onnx = findings["google.protobuf"].version, findings["onnx"].version
    if (
        protobuf
        and onnx
        and parse_version(protobuf) >= (5,)
        and parse_version(onnx) < (1, 18)
    ):
        what = f"is {protobuf}, too new for onnx {onnx}"
        return Problem("protobuf", what, pip_install(pinned("google.protobuf")))
    return None


def check_onnx(findings: Findings) -> Optional[Problem]:
    """Check that onnx is older than 1.18 if numpy is 1.x."""
    numpy, onnx = findings["numpy"].version, findings["onnx"].version
    if (
        onnx
        and numpy
        and parse_version(onnx) >= (1, 18)
        and parse_version(numpy) < (2,)
    ):
        what = f"is {onnx}, which needs numpy 2 and a newer protobuf"
        fix = pip_install(pinned("onnx"), pinned("google.protobuf"))
        return Problem("onnx", what, fix)
    return None


def check_transformers(findings: Findings) -> Optional[Problem]:
    """Check that transformers is at most 4.48 if torch is 1.x."""
    version, torch = findings["transformers"].version, findings["torch"].version
    if version and is_torch_1(findings) and parse_version(version) >= (4, 49):
        what = f"is {version}, too new for torch {torch}"
        fix = pip_install("transformers==4.48.3")
        return Problem("transformers", what, fix, required=False)
    return None


def check_presence(package: Package, findings: Findings) -> Optional[Problem]:
    """Check that a required package is installed."""
    is_torch_2 = findings["torch"].is_installed and not is_torch_1(findings)
    if not package.is_required or not is_missing(findings[package.module]):
        return None
    if package.torch_1_only and is_torch_2:
        return None
    remedy = pip_install(pinned(package.module))
    if package.dist == "k2":
        remedy = install_pinned_k2()
    what = f"is missing (needed for: {package.purpose})"
    return Problem(package.dist, what, remedy)


def check_import(package: Package, findings: Findings) -> Optional[Problem]:
    """Check that an installed package can be imported."""
    finding, name = findings[package.module], package.dist
    if finding.error is None:
        return None
    if name == "kaldifeat":
        remedy = "source local/env.sh  (library path); if built for another torch:"
        remedy += " bash local/install_kaldifeat.sh"
    elif name == "k2" and finding.version == package.pin:
        remedy = install_pinned_k2()
    else:  # reinstall the same version: other checks compare versions
        requirement = f"{name}=={finding.version}" if finding.version else name
        remedy = pip_install(requirement, flags="--force-reinstall --no-deps")
    what = f"cannot be imported: {finding.error}"
    return Problem(name, what, remedy, required=package.is_required)


@dataclass(frozen=True)
class Check:
    """A check of one package.

    Attributes:
      subject: name of the package in the package index.
      run: the check.
      needs: other packages; the check is skipped if one of them has a problem.
    """

    subject: str
    run: Callable[[Findings], Optional[Problem]]
    needs: tuple[str, ...] = ()


def _import_check(package: Package) -> Check:
    needs = tuple(PACKAGES[name].dist for name in package.needs)
    return Check(package.dist, partial(check_import, package), needs)


# Versions before imports: a wrong version explains a failed import.
_IMPORT_CHECKS = [_import_check(p) for p in PACKAGES.values()]  # numpy and torch first
CHECKS: list[Check] = [
    Check("python", check_python),
    Check("numpy", check_numpy, ("python",)),
    Check("torch", check_torch, ("python", "numpy")),
    Check("k2", check_k2_torch, ("python", "torch")),
    Check("torchaudio", check_torchaudio, ("torch",)),
    Check("lhotse", check_lhotse, ("torch",)),
    Check("onnx", check_onnx, ("numpy",)),
    Check("protobuf", check_protobuf, ("onnx",)),
    Check("transformers", check_transformers, ("torch",)),
    *(Check(p.dist, partial(check_presence, p)) for p in PACKAGES.values()),
    *_IMPORT_CHECKS[:2],
    Check("torch", check_gpu),
    *_IMPORT_CHECKS[2:],
    Check("k2", check_k2_cuda),
]


def diagnose(findings: Findings) -> list[Problem]:
    """Run all checks; return at most one problem for each package, causes first."""
    empty = check_environment(findings)
    if empty is not None:
        return [empty]
    problems: list[Problem] = []
    tainted: set[str] = set()
    for check in CHECKS:
        if tainted.intersection((check.subject, *check.needs)):
            continue
        problem = check.run(findings)
        if problem is not None:
            problems.append(problem)
            tainted.update({problem.subject, *problem.taints})
    return problems
