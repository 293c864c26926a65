"""Files that are whole or absent, and folders that one process uses."""

import subprocess
import sys

import pytest

from icefall_kd.io import remove_partial, sole_user, write_aside

HOLD = """
import sys
from icefall_kd.io import sole_user
with sole_user(sys.argv[1]):
    sys.stdout.write("held\\n")
    sys.stdout.flush()
    sys.stdin.read()
"""


def test_a_folder_in_use_is_refused_until_its_process_ends(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="another process is at work there"):
        with sole_user(tmp_path):
            pass
    other.kill()
    other.wait()
    with sole_user(tmp_path):
        pass


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / "a.pt").write_text("whole")
    with write_aside(tmp_path / "a.pt") as aside:
        aside.write_text("half")
        remove_partial(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
        aside.write_text("new")
    assert (tmp_path / "a.pt").read_text() == "new"
