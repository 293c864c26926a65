"""local/debian_packages.sh on a package file, without network."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTROL = """Package: some-sounds
Version: 1.0
Architecture: all
Maintainer: Nobody <nobody@example.org>
Description: sounds for a test
"""

pytestmark = pytest.mark.skipif(
    not shutil.which("dpkg-deb") or not shutil.which("apt-get"),
    reason="not a Debian machine",
)


def run_script(tmp_path: Path, *names: str) -> subprocess.CompletedProcess:
    """Run the script with an apt that has no sources and no package lists."""
    (tmp_path / "apt/lists/partial").mkdir(parents=True, exist_ok=True)
    config = tmp_path / "apt.conf"
    config.write_text(
        f'Dir::State "{tmp_path}/apt";\n'
        'Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "/dev/null";\n'
    )
    command = ["bash", ROOT / "local/debian_packages.sh", *names]
    env = {**os.environ, "APT_CONFIG": str(config)}
    return subprocess.run(
        [*command, "--into", tmp_path / "into"], env=env, text=True, capture_output=True
    )


def write_package(tmp_path: Path) -> Path:
    """Return a package file with one file, in the folder of the script's output."""
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(CONTROL)
    (tree / "usr/share/sounds").mkdir(parents=True)
    (tree / "usr/share/sounds/hello.txt").write_text("hello")
    (tmp_path / "into").mkdir()
    deb = tmp_path / "into/some-sounds_1.0_all.deb"
    command = ["dpkg-deb", "--root-owner-group", "--build", tree, deb]
    subprocess.run(command, check=True, capture_output=True)
    return deb


def test_without_network_the_package_is_reported(tmp_path):
    done = run_script(tmp_path, "some-sounds")
    assert done.returncode == 1
    (error,) = [x for x in done.stderr.splitlines() if "ERROR" in x]
    assert "package some-sounds" in error and "Debian mirror" in error
    assert not (tmp_path / "into/.unpacked").exists()


def test_a_package_file_is_unpacked_once(tmp_path):
    deb = write_package(tmp_path)
    done = run_script(tmp_path, "some-sounds")
    assert done.returncode == 0, done.stderr
    hello = tmp_path / "into/usr/share/sounds/hello.txt"
    assert hello.read_text() == "hello"
    hello.write_text("kept")
    assert "unpacked before" in run_script(tmp_path, "some-sounds").stderr
    assert hello.read_text() == "kept" and deb.exists()


def test_a_damaged_package_file_is_reported(tmp_path):
    deb = write_package(tmp_path)
    deb.write_bytes(deb.read_bytes()[:100])
    done = run_script(tmp_path, "some-sounds")
    assert done.returncode == 1
    assert "some-sounds_1.0_all.deb: not a Debian package" in done.stderr


def test_names_of_packages_are_required(tmp_path):
    assert run_script(tmp_path).returncode == 2
