"""The GPU check itself, on a CPU with small models."""

import json
import os
import subprocess
import sys
from pathlib import Path

CHECK = Path(__file__).parent / "check.py"
RUN = """if True:
    import runpy, sys
    sys.modules["k2"] = None  # an import fails
    sys.path.insert(0, sys.argv[1].rpartition("/")[0])
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_all_checks_pass_on_a_cpu_without_k2(tmp_path):
    options = ["--device", "cpu", "--tiny", "--minutes", "60"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(CHECK), "--out", str(tmp_path), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) > 10
    for name, result in results.items():
        if name not in ("environment", "time_compiled"):
            assert result["status"] == "ok", (name, result)
    assert (tmp_path / "profile.txt").stat().st_size > 1000
    assert json.loads((tmp_path / "check.json").read_text()).keys() == results.keys()
