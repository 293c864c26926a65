"""Check that the installed packages work together.

    python -m icefall_kd.bin.doctor [--json]

Prints the version of each package, the GPU, and for each problem one line with its
description and one with its remedy.  Exits with status 1 if a required package has a
problem, else with 0.
"""

import json
import platform
import sys
from typing import Optional

from icefall_kd.core.cli import create_parser
from icefall_kd.doctor.checks import Findings, Problem, diagnose
from icefall_kd.doctor.packages import PACKAGES, import_packages, k2_built_for


def describe(name: str, findings: Findings) -> str:
    """Return the purpose of a package, or the properties of torch and k2."""
    finding, package = findings[name], PACKAGES[name]
    if name == "torch" and finding.is_working:
        info = finding.info
        device = f"{info['gpu']} ({info['arch']})" if info.get("gpu") else "none"
        return f"built for CUDA {info.get('cuda')}; GPU: {device}"
    if name == "k2" and finding.is_installed:
        return f"built for torch {k2_built_for('torch')}"
    if not package.is_required:
        return f"optional: {package.purpose}"
    return package.purpose


def print_report(findings: Findings, problems: list[Problem]) -> None:
    """Print the table of packages, the problems and their remedies."""
    wrong = {p.subject for p in problems}
    print(f"{'python':<20} {platform.python_version():<10} {sys.executable}")
    for name, package in PACKAGES.items():
        finding = findings[name]
        if package.dist in wrong:
            state = "WRONG"
        elif finding.is_working:
            state = "ok"
        else:
            # Not installed, or broken because of another package's problem.
            state = "absent" if finding.error is None else "see below"
        version = finding.version or "-"
        remark = describe(name, findings)
        print(f"{package.dist:<20} {version:<10} {state:<9} {remark}")
    for problem in problems:
        kind = "WRONG" if problem.required else "WRONG (optional)"
        print(f"\n{kind}: {problem.subject} {problem.what}\nremedy: {problem.remedy}")
    if not problems:
        print("\nNo problems found.")


def main(argv: Optional[list[str]] = None) -> int:
    """Print the report, and return the exit status."""
    parser = create_parser(__doc__)
    parser.add_argument(
        "--json", action="store_true", help="print JSON instead of a table"
    )
    args = parser.parse_args(argv)
    findings = import_packages(PACKAGES)
    problems = diagnose(findings)
    if args.json:
        report = {
            "python": platform.python_version(),
            "packages": {n: vars(f) for n, f in findings.items()},
            "problems": [vars(p) for p in problems],
        }
        print(json.dumps(report, indent=2))
    else:
        print_report(findings, problems)
    return 1 if any(p.required for p in problems) else 0


if __name__ == "__main__":
    sys.exit(main())
