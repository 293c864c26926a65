"""Write a small corpus of Asterisk prompts in the layout of LibriSpeech."""

import shutil
from pathlib import Path

import pytest
from lhotse import CutSet

# Part -> ids of its speakers.
SPEAKERS = {
    "train-clean-100": (19, 26),
    "train-clean-360": (14,),
    "train-other-500": (20,),
    "dev-other": (116,),
    "test-clean": (61,),
}
UTTERANCES = 6  # per speaker


def write_corpus(recipe: Path, folder: Path) -> Path:
    """Write prompts of 1 to 4 s to ``folder``/LibriSpeech, and return ``folder``."""
    cuts = CutSet.from_file(recipe / "data/manifests/train.jsonl.gz")
    prompts = (cut for cut in cuts if 1.0 < cut.duration < 4.0)
    for part, speakers in SPEAKERS.items():
        for speaker in speakers:
            name = f"{speaker}-{speaker + 100}"
            chapter = folder / "LibriSpeech" / part / name.replace("-", "/")
            chapter.mkdir(parents=True)
            lines = []
            for number in range(UTTERANCES):
                prompt, id = next(prompts), f"{name}-{number:04d}"
                audio = recipe / prompt.recording.sources[0].source
                shutil.copy(audio, chapter / f"{id}.flac")
                lines.append(f"{id} {prompt.supervisions[0].text}\n")
            (chapter / f"{name}.trans.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def librispeech(asterisk, tmp_path_factory):
    """Return the folder that contains LibriSpeech/; tests must not write to it."""
    return write_corpus(asterisk, tmp_path_factory.mktemp("corpus"))
