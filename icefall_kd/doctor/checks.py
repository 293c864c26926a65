"""What a check reports, and the commands that remedies are made of.

Which versions go together: one small function for each rule.

Every function takes the findings of the probe and returns a Problem or None.

Judge what the probe found: one table of checks, each a small function.
"""

import sys
from dataclasses import dataclass
from typing import Callable, Optional

from icefall_kd.doctor.packages import PACKAGES, Finding, Package, k2_built_for

Findings = dict[str, Finding]
Version = tuple[int, ...]

K2_WHEELS = "https://k2-fsa.github.io/k2/{}.html"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and the one command or step that mends it.

    Attributes:
      subject: the package, by its name in the index.
      what: what is wrong with it; the sentence goes on after the subject.
      remedy: the command.
      required: False if only an optional part fails.
      taints: further packages of which nothing can be said before this is mended.
    """

    subject: str
    what: str
    remedy: str
    required: bool = True
    taints: tuple[str, ...] = ()


def numbers(version: Optional[str]) -> Version:
    """Return the leading numbers of a version: "1.24.4.dev2+cu" -> (1, 24, 4)."""
    parts = []
    for part in (version or "").split("+")[0].split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)


def pip_install(*requirements: str, flags: str = "") -> str:
    """Return the command that installs ``requirements`` into this environment."""
    quoted = " ".join(f'"{r}"' for r in requirements)
    return f"{sys.executable} -m pip install {flags}{' ' if flags else ''}{quoted}"


def pinned(name: str) -> str:
    """Return the requirement that requirements.txt has for a module."""
    package = PACKAGES[name]
    return f"{package.dist}=={package.pin}" if package.pin else package.dist


def pinned_k2() -> str:
    """Return the command that installs the one wheel of the pinned k2 that fits."""
    flags = "--force-reinstall --no-deps"
    return f"{sys.executable} -m pip install {flags} -r local/k2_wheel.txt"


def is_torch_1(findings: Findings) -> bool:
    """Whether torch is of the line that k2's wheel in the package index needs."""
    return numbers(findings["torch"].version)[:1] == (1,)


def k2_wheel(findings: Findings) -> str:
    """Return how to get the k2 for this torch, from where k2 publishes wheels."""
    page = K2_WHEELS.format("cuda" if findings["torch"].info.get("cuda") else "cpu")
    ending = f"torch{findings['torch'].version}"
    return f"install the k2 wheel whose name ends in {ending} from {page}"


def check_python(findings: Findings) -> Optional[Problem]:
    """Python is new enough, and 3.10 where the wheels of torch 1.13.1 are used."""
    version = sys.version_info[:2]
    text = ".".join(map(str, sys.version_info[:3]))
    remedy = "rm -r .venv; bash local/install.sh  (it finds Python 3.10)"
    if version < (3, 9):
        return Problem("python", f"is {text}, 3.9 or newer is needed", remedy)
    wheel = PACKAGES["k2"].pin
    torch_2 = numbers(findings["torch"].version) >= (2,)
    k2 = findings["k2"].version
    if version != (3, 10) and (k2 == wheel or (k2 is None and not torch_2)):
        what = f"is {text}, but the wheel of k2 {wheel} is for 3.10"
        return Problem("python", what, remedy, taints=("k2",))
    return None


def check_numpy(findings: Findings) -> Optional[Problem]:
    """torch before 2.3 was built against numpy 1."""
    torch, numpy = findings["torch"].version, findings["numpy"].version
    if torch and numbers(torch) < (2, 3) and numbers(numpy) >= (2,):
        what = f"is {numpy}, but torch {torch} was built against numpy 1"
        return Problem("numpy", what, pip_install(pinned("numpy")))
    return None


def check_torch(findings: Findings) -> Optional[Problem]:
    """torch is 1.13.1 or newer."""
    version = findings["torch"].version
    if version and numbers(version) < (1, 13, 1):
        what = f"is {version}, 1.13.1 or newer is needed"
        fix = pip_install(pinned("torch"), pinned("torchaudio"))
        return Problem("torch", what, fix)
    return None


def check_gpu(findings: Findings) -> Optional[Problem]:
    """torch was compiled for the GPU of this machine."""
    info = findings["torch"].info
    if not info.get("gpu"):
        return None
    generation = info["arch"][:-1]  # sm_86 runs what was compiled for sm_80
    built = [a for a in info["arch_list"] if a.startswith("sm_")]
    same = [a for a in built if a[:-1] == generation and a <= info["arch"]]
    later = any(a.startswith("compute_") for a in info["arch_list"])
    if same or later or not built:
        return None
    what = f"has no code for {info['gpu']} ({info['arch']}), only {' '.join(built)}"
    remedy = "install torch and k2 wheels for that GPU, see"
    remedy += f" {K2_WHEELS.format('cuda')}, or hide it: export CUDA_VISIBLE_DEVICES="
    return Problem("torch", what, remedy)


def _agree_with_k2(findings: Findings, built: str) -> str:
    """The shortest way to a torch and a k2 that fit."""
    torch = findings["torch"].version or ""
    if torch == PACKAGES["torch"].pin:
        return pinned_k2()
    built_torch = built.split("+")[0]
    if built_torch == PACKAGES["torch"].pin:
        return pip_install(pinned("torch"), pinned("torchaudio"))
    return k2_wheel(findings)


def check_k2_torch(findings: Findings) -> Optional[Problem]:
    """k2 was built for this torch: otherwise it fails on import, or later."""
    k2, torch = findings["k2"], findings["torch"]
    built = k2_built_for("torch")
    if not k2.present or not torch.present or built is None:
        return None
    if built.split("+")[0] != torch.version:
        what = f"{k2.version} was built for torch {built}, but torch is {torch.version}"
        remedy = _agree_with_k2(findings, built)
        return Problem("k2", what, remedy, taints=("torch",))
    built_cuda, cuda = k2_built_for("torch_cuda"), torch.info.get("cuda")
    if built_cuda and cuda and built_cuda != cuda:
        what = f"{k2.version} was built for CUDA {built_cuda}, but torch has {cuda}"
        return Problem("k2", what, _agree_with_k2(findings, built))
    return None


def check_k2_cuda(findings: Findings) -> Optional[Problem]:
    """A machine with a GPU has a k2 that was compiled with CUDA."""
    k2, torch = findings["k2"], findings["torch"]
    if not torch.info.get("gpu") or not k2.works or k2.info.get("with_cuda"):
        return None
    what = f"{k2.version} was compiled without CUDA, but there is {torch.info['gpu']}"
    return Problem("k2", what, k2_wheel(findings))


def check_torchaudio(findings: Findings) -> Optional[Problem]:
    """torchaudio is of torch's release: 0.13 with 1.13, then the same number to 2.8."""
    torch, audio = findings["torch"].version, findings["torchaudio"].version
    if not torch or not audio or numbers(torch) >= (2, 9):
        return None
    major, minor = (*numbers(torch), 0, 0)[:2]
    wanted = (0, minor) if major == 1 else (major, minor)
    if numbers(audio)[:2] == wanted:
        return None
    release = pinned("torchaudio")
    if not is_torch_1(findings):
        release = f"torchaudio=={major}.{minor}.*"
    what = f"is {audio}, which does not belong to torch {torch}"
    return Problem("torchaudio", what, pip_install(release, flags="--no-deps"))


def check_lhotse(findings: Findings) -> Optional[Problem]:
    """lhotse is 1.32.1, or newer where torch is newer than 1.13."""
    version, torch = findings["lhotse"].version, findings["torch"].version
    pin = PACKAGES["lhotse"].pin
    if not version or not numbers(version):
        return None
    if numbers(version) < numbers(pin):
        what = f"is {version}, {pin} or newer is needed"
    elif is_torch_1(findings) and numbers(version) > numbers(pin):
        what = f"is {version}, whose samplers fail with torch {torch}"
    else:
        return None
    return Problem("lhotse", what, pip_install(pinned("lhotse")))


def check_protobuf(findings: Findings) -> Optional[Problem]:
    """The onnx releases before 1.18 want a protobuf before 5."""
    protobuf, onnx = findings["google.protobuf"].version, findings["onnx"].version
    if protobuf and onnx and numbers(protobuf) >= (5,) and numbers(onnx) < (1, 18):
        what = f"is {protobuf}, too new for onnx {onnx}"
        return Problem("protobuf", what, pip_install(pinned("google.protobuf")))
    return None


def check_onnx(findings: Findings) -> Optional[Problem]:
    """numpy 1 goes with onnx before 1.18."""
    numpy, onnx = findings["numpy"].version, findings["onnx"].version
    if onnx and numpy and numbers(onnx) >= (1, 18) and numbers(numpy) < (2,):
        what = f"is {onnx}, which wants numpy 2 and a newer protobuf"
        fix = pip_install(pinned("onnx"), pinned("google.protobuf"))
        return Problem("onnx", what, fix)
    return None


def check_transformers(findings: Findings) -> Optional[Problem]:
    """torch 1.13.1 goes with transformers up to 4.48."""
    version, torch = findings["transformers"].version, findings["torch"].version
    if version and is_torch_1(findings) and numbers(version) >= (4, 49):
        what = f"is {version}, too new for torch {torch}"
        fix = pip_install("transformers==4.48.3")
        return Problem("transformers", what, fix, required=False)
    return None


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
