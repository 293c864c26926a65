"""Which versions go together: one small function for each rule.

Every function takes the findings of the probe and returns a Problem or None.
"""

import sys
from typing import Optional

from icefall_kd.doctor.packages import PACKAGES
from icefall_kd.doctor.probe import k2_built_for
from icefall_kd.doctor.problem import (
    K2_WHEELS,
    Findings,
    Problem,
    is_torch_1,
    k2_wheel,
    numbers,
    pinned,
    pinned_k2,
    pip_install,
)


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
