"""local/install.sh with few packages, without network."""

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = (
    "bash dirname date sed awk cat sha256sum cut sort ls mkdir rm rmdir grep wc paste"
    " tail head env printf flock uname tr basename mktemp"
)
REAL_PYTHON = os.path.realpath(sys.executable)
NO_INDEX = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 10), reason="install.sh needs Python 3.10"
)


def link_tools(folder: Path) -> Path:
    """Return a folder for PATH with the usual tools and without Python."""
    folder.mkdir()
    for name in TOOLS.split():
        if path := shutil.which(name):
            (folder / name).symlink_to(path)
    return folder


def clean_env(tmp_path: Path, **more: str) -> dict:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    env = {"HOME": str(home), "ICEFALL_KD_VENV": str(tmp_path / "venv")}
    path = tmp_path / "tools"
    env["PATH"] = str(path if path.exists() else link_tools(path))
    return {**env, **more}


def add_pyenv(tmp_path: Path) -> None:
    versions = tmp_path / "home/.pyenv/versions/3.10.99/bin"
    versions.mkdir(parents=True)
    (versions / "python3.10").symlink_to(REAL_PYTHON)


def bash(*args: str, env: dict) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", *args], env=env, text=True, capture_output=True)


def install(env: dict, root: Path = ROOT, *options: str) -> subprocess.CompletedProcess:
    return bash(str(root / "local/install.sh"), *options, env=env)


def script(path: Path, text: str) -> None:
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(0o755)


def errors(done: subprocess.CompletedProcess) -> list:
    return [x for x in done.stderr.splitlines() if "ERROR" in x]


def find_python(env: dict, versions: str = "3.10") -> subprocess.CompletedProcess:
    code = f"source {ROOT}/local/find_python.sh; find_python {versions}"
    return bash("-c", code, env=env)


def test_a_missing_python_310_is_reported(tmp_path):
    done = install(clean_env(tmp_path))
    assert done.returncode == 1
    (error,) = errors(done)
    assert "no Python 3.10" in error and "apt-get install" in error
    assert not (tmp_path / "venv").exists()


def test_a_python_of_pyenv_is_found_after_a_failing_shim(tmp_path):
    env = clean_env(tmp_path)
    script(tmp_path / "tools/python3.10", "echo 'command not found' >&2; exit 127")
    done = find_python(env)
    assert done.returncode == 1
    assert "tools/python3.10: not a Python 3.10" in done.stderr
    add_pyenv(tmp_path)
    done = find_python(env)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).name.startswith("python3")
    assert find_python(env, "3.99 3.10").stdout == done.stdout
    assert find_python(env, "3.99").returncode == 1


def test_uv_may_download_a_python(tmp_path):
    env = clean_env(tmp_path)
    fetched = tmp_path / "fetched"
    script(
        tmp_path / "tools/uv",
        f"case $2 in install) : >{fetched} ;; find) [[ -e {fetched} ]] &&"
        f" echo {REAL_PYTHON} ;; esac",
    )
    assert find_python(env).stdout.strip()
    assert fetched.exists()


def test_without_network_nothing_changes(tmp_path):
    env = clean_env(tmp_path, PIP_FIND_LINKS="/nonexistent", **NO_INDEX)
    add_pyenv(tmp_path)
    subprocess.run([REAL_PYTHON, "-m", "venv", tmp_path / "venv"], check=True)
    packages = tmp_path / "venv/lib/python3.10/site-packages"
    mine = packages / "mine.py"
    mine.write_text("kept = True\n")
    before = sorted(p.name for p in packages.iterdir())
    done = install(env)
    assert done.returncode == 1
    (error,) = errors(done)
    assert "k2==1.23.4" in error and "network" in error
    assert sorted(p.name for p in packages.iterdir()) == before
    assert not list((tmp_path / "venv").glob(".installed-*"))


def test_a_folder_that_is_not_an_environment_is_not_changed(tmp_path):
    env = clean_env(tmp_path)
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv/thesis.txt").write_text("mine")
    done = install(env)
    assert done.returncode == 1
    assert "is not a virtual environment" in errors(done)[0]
    assert [p.name for p in (tmp_path / "venv").iterdir()] == ["thesis.txt"]


def test_an_environment_of_another_python_is_not_changed(tmp_path):
    env = clean_env(tmp_path)
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/pyvenv.cfg").write_text("version = 3.12.1\n")
    script(tmp_path / "venv/bin/python", "exit 1")
    done = install(env)
    assert done.returncode == 1
    assert "another version than 3.10" in errors(done)[0]


def test_a_torch_from_elsewhere_is_not_replaced(tmp_path):
    env = clean_env(tmp_path, **NO_INDEX)
    venv = tmp_path / "venv"
    subprocess.run([REAL_PYTHON, "-m", "venv", venv], check=True)
    packages = venv / "lib/python3.10/site-packages"
    (packages / "torch").mkdir()
    (packages / "torch/__init__.py").write_text("__version__ = '2.9.1'")
    done = install(env)
    assert done.returncode == 1
    (error,) = errors(done)
    assert "no icefall_kd" in error and "pip install -e" in error
    (packages / "here.pth").write_text(f"{ROOT}\n")  # as an editable installation
    before = sorted(p.name for p in packages.iterdir())
    done = install(env)
    assert done.returncode == 0, done.stderr
    assert "used as it is" in done.stderr and "bin.doctor" in done.stderr
    assert sorted(p.name for p in packages.iterdir()) == before
    assert not (venv / "install.log").exists()


def wheel_of(dist: str, path: Path, without: str = "") -> Path:
    """Write a wheel of an installed package, less paths that start with ``without``."""
    with zipfile.ZipFile(path, "w") as wheel:
        for file in importlib.metadata.distribution(dist).files:
            inside = ".." not in file.parts and "__pycache__" not in file.parts
            left_out = without and str(file).startswith(without)
            if inside and not left_out and file.locate().exists():
                wheel.write(file.locate(), str(file))
    return path


def pin_of(dist: str) -> str:
    return f"{dist}=={importlib.metadata.version(dist)}"


def wheels_of_k2(folder: Path) -> str:
    """Write wheels of k2 for several Pythons, and return the pin of that for 3.10."""
    name = pin_of("k2").replace("==", "-")
    for other in ("py3.7", "py3.8", "py3.9", "py3.11"):
        wheel_of("k2", folder / f"{name}-{other}-none-any.whl", without="_k2.")
    right = wheel_of("k2", folder / f"{name}-py3.10-none-any.whl")
    sha256 = hashlib.sha256(right.read_bytes()).hexdigest()
    return f"{pin_of('k2')} --hash=sha256:{sha256}\n"


@pytest.fixture
def small_repository(tmp_path):
    """Return a copy of the repository with few pins, and the environment variables."""
    root, wheels = tmp_path / "repository", tmp_path / "wheels"
    wheels.mkdir()
    for name in ("local", "icefall_kd"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    pins = [pin_of(dist) for dist in ("setuptools", "wheel", "packaging")]
    for pin in pins:
        name = pin.replace("==", "-")
        wheel_of(pin.split("==")[0], wheels / f"{name}-py3-none-any.whl")
    (root / "requirements.txt").write_text("\n".join(pins) + "\n")
    (root / "local/k2_wheel.txt").write_text(wheels_of_k2(wheels))
    env = clean_env(tmp_path, PIP_FIND_LINKS=str(wheels), **NO_INDEX)
    add_pyenv(tmp_path)
    return root, env


def test_an_installation_is_skipped_or_resumed(small_repository, tmp_path):
    root, env = small_repository
    venv = tmp_path / "venv"
    done = install(env, root)
    assert done.returncode == 0, done.stderr
    where = [venv / "bin/python", "-c", "import icefall_kd as k; print(k.__file__)"]
    out = subprocess.check_output(where, text=True, env=env, cwd=tmp_path)
    assert Path(out.strip()) == root / "icefall_kd/__init__.py"
    packages = venv / "lib/python3.10/site-packages"
    (k2,) = packages.glob("_k2.*.so")

    start = time.monotonic()
    done = install(env, root)
    assert done.returncode == 0 and "already installed" in done.stderr
    assert time.monotonic() - start < 2

    # As if killed while pip wrote a package: neither RECORD nor stamp exist.
    (stamp,) = venv.glob(".installed-*")
    stamp.unlink()
    next(packages.glob("wheel-*.dist-info/RECORD")).unlink()
    (packages / "wheel/__init__.py").unlink()
    done = install(env, root)
    assert done.returncode == 0, done.stderr
    assert "after an interruption" in done.stderr
    assert (packages / "wheel/__init__.py").exists() and stamp.exists()

    # New pins are installed, and the pinned k2 replaces a wheel of another Python.
    k2.rename(k2.with_name("_k2.cpython-39-x86_64-linux-gnu.so"))
    with open(root / "requirements.txt", "a") as pins:
        pins.write("# changed\n")
    done = install(env, root)
    assert done.returncode == 0 and "already installed" not in done.stderr
    (new_stamp,) = venv.glob(".installed-*")
    assert new_stamp.name != stamp.name
    assert k2.exists()


def write_torch(path: Path, version: str) -> None:
    """Write a wheel with an empty module torch."""
    path.mkdir(exist_ok=True, parents=True)
    info = f"torch-{version}.dist-info"
    with zipfile.ZipFile(path / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("torch.py", "")
        text = f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
        wheel.writestr(f"{info}/METADATA", text)
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tag)
        wheel.writestr(f"{info}/RECORD", "")


def test_the_current_stack_prefers_a_torch_for_cpus_to_that_of_the_index(
    small_repository, tmp_path
):
    root, env = small_repository
    package = (root / "setup.py").read_text()
    package = re.sub(r"(?ms)^(INSTALL_REQUIRES) = .*?^]", r'\1 = ["torch"]', package)
    package = re.sub(r"(?ms)^(EXTRAS) = .*?^}", r"\1 = {}", package)
    (root / "setup.py").write_text(package)
    write_torch(Path(env["PIP_FIND_LINKS"]), "99.0+cpu")
    write_torch(tmp_path / "index/torch", "99.1")
    (link,) = (tmp_path / "index/torch").iterdir()
    (link.parent / "index.html").write_text(f'<a href="{link.name}">{link.name}</a>')
    del env["PIP_NO_INDEX"], env["ICEFALL_KD_VENV"]
    env["PIP_INDEX_URL"] = (tmp_path / "index").as_uri()
    done = install(env, root, "--stack", "current")
    assert done.returncode == 0, done.stderr
    venv = root / ".venv-current"
    assert list(venv.glob("lib/*/*/torch-99.0+cpu.dist-info"))
    assert not list(venv.glob("lib/*/*/k2"))

    # The recipes call install.sh without the option.
    done = install({**env, "ICEFALL_KD_VENV": str(venv)}, root)
    assert done.returncode == 0 and "is used as it is" in done.stderr
    assert len(list(venv.glob(".installed-*"))) == 1


def test_an_unknown_stack_is_named(tmp_path):
    done = install(clean_env(tmp_path), ROOT, "--stack", "new")
    assert done.returncode == 1
    assert "--stack: unknown 'new'. Available: pinned, current" in errors(done)[0]
