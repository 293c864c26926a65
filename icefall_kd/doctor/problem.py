"""What a check reports, and the commands that remedies are made of."""

import sys
from dataclasses import dataclass
from typing import Optional

from icefall_kd.doctor.packages import PACKAGES
from icefall_kd.doctor.probe import Finding

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
