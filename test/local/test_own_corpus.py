"""Run the commands of the README's section "Your own corpus" on a small corpus."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from icefall_kd.fields.reader import open_shar

ROOT = Path(__file__).resolve().parents[2]


def section_commands() -> str:
    """Return the commands of the section."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("\n## Your own corpus\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"```bash\n(.*?)```", section, re.DOTALL))


def set_variable(commands: str, name: str, value: object) -> str:
    """Return the commands with another value of a variable."""
    pattern = re.compile(rf"^{name}=\S+", re.MULTILINE)
    assert len(pattern.findall(commands)) == 1, name
    return pattern.sub(f"{name}={value}", commands)


@pytest.fixture
def kaldi(asterisk, tmp_path):
    """Write Kaldi data directories of real prompts, two segments per recording."""
    for name, count in (("train", 20), ("dev", 4), ("test", 4)):
        cuts = open_shar(asterisk / f"data/shar/{name}")
        # A BPE model of twenty texts may lack the apostrophe.
        plain = (c for c in cuts if "'" not in c.supervisions[0].text)
        short = [c for c in plain if 1.0 < c.duration < 4.0][:count]
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        lines = {"wav.scp": [], "text": [], "segments": [], "utt2spk": []}
        for number in range(0, count, 2):
            recording = f"{name}{number:02d}"
            waves = [cut.load_audio()[0] for cut in short[number : number + 2]]
            path = folder / f"{recording}.wav"
            soundfile.write(path, np.concatenate(waves), 16000)
            lines["wav.scp"].append(f"{recording} {path}")
            start = 0.0
            for part, wave in enumerate(waves):
                end = start + len(wave) / 16000
                utterance = f"{recording}-{part}"
                text = short[number + part].supervisions[0].text
                lines["text"].append(f"{utterance} {text}")
                # Kaldi's tools round to 10 ms: a segment may end after its audio.
                segment = f"{utterance} {recording} {start:.2f} {end:.2f}"
                lines["segments"].append(segment)
                lines["utt2spk"].append(f"{utterance} {name}")
                start = end
        for file, rows in lines.items():
            (folder / file).write_text("\n".join(sorted(rows)) + "\n")
    return tmp_path / "data"


@pytest.mark.slow
def test_readme_commands_lead_from_kaldi_data_to_a_report(kaldi, tiny_dir, tmp_path):
    commands = section_commands()
    commands = commands.replace("~/icefall-kd/local/env.sh", f"{ROOT}/local/env.sh")
    for name, value in (
        ("kaldi", kaldi),
        ("vocab", 60),
        ("epochs", 1),
        ("teacher", tiny_dir),
    ):
        commands = set_variable(commands, name, value)
    script = tmp_path / "own.sh"
    script.write_text(commands)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    own = tmp_path / "own"
    for name, kept in (("train", 60), ("dev", 4), ("test", 4)):
        report = json.loads((own / f"shar/{name}.gate.json").read_text())
        assert (report["kept"], report["dropped"]) == (kept, 0), name
    table = (own / "summary.md").read_text()
    assert "| baseline |" in table and "| distilled |" in table
    for system, folder in (
        ("baseline", "decode"),
        ("distilled", "decode"),
        ("distilled", "sherpa"),
    ):
        (path,) = (own / system / folder).glob("result-test-*.json")
        result = json.loads(path.read_text())
        assert (result["streaming"], result["utterances"]) == (True, 4)
        assert result["words"] > 0 and result["wer"] is not None
