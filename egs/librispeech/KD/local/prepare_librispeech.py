"""Write a manifest of parts of LibriSpeech that refers to the original audio.

    python local/prepare_librispeech.py --source download --parts train-clean-100 \\
        --labelled --name train-clean-100 --output data/manifests

Panayotov et al., LibriSpeech: an ASR corpus based on public domain audio books, 2015;
CC BY 4.0, https://www.openslr.org/12.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from lhotse import CutSet
from lhotse.recipes.librispeech import prepare_librispeech

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.cpu import count_cpus
from icefall_kd.core.logs import setup_logging
from icefall_kd.corpora.manifests import write_manifest

# Part -> utterances in the release, to find parts that are not completely unpacked.
PARTS = {
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
}


def find_corpus(source_dir: Path, parts: Sequence[str]) -> Path:
    """Return the folder of ``parts``: ``source_dir`` or its sub-folder LibriSpeech/.

    Raises:
      FileNotFoundError: if a part is missing, or has no transcripts or no audio.
    """
    below = source_dir / "LibriSpeech"
    folder = below if below.is_dir() else source_dir
    for part, files in ((p, f) for p in parts for f in ("*.trans.txt", "*.flac")):
        if next((folder / part).glob(f"*/*/{files}"), None) is None:
            raise FileNotFoundError(
                f"{folder / part}: no */*/{files}; unpack {part}.tar.gz of "
                f"https://www.openslr.org/12 into {folder.parent}, or set --source to "
                "the folder of LibriSpeech/"
            )
    return folder


def read_cuts(source_dir: Path, parts: Sequence[str], *, labelled: bool) -> CutSet:
    """Return the utterances of ``parts``, sorted by id.

    Args:
      source_dir: see :func:`find_corpus`.
      parts: names such as "dev-other".
      labelled: whether the cuts have supervisions.
    """
    corpus = find_corpus(source_dir, parts)
    manifests = prepare_librispeech(
        corpus, dataset_parts=list(parts), num_jobs=count_cpus()
    )
    cuts = []
    for part in parts:
        recordings = manifests[part]["recordings"]
        supervisions = {s.recording_id: s for s in manifests[part]["supervisions"]}
        if len(recordings) != PARTS.get(part, len(recordings)):
            logging.warning(
                "%s: %d utterances, the release has %d; unpack it again",
                corpus / part,
                len(recordings),
                PARTS[part],
            )
        for recording in recordings:
            cut = recording.to_cut()
            cut.id = recording.id
            cut.supervisions = [supervisions[recording.id]] if labelled else []
            cut.custom = {"language": "en"}
            cuts.append(cut)
    return CutSet.from_cuts(sorted(cuts, key=lambda cut: cut.id))


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument(
        "--source", type=Path, required=True, help="LibriSpeech/ or its parent folder"
    )
    parser.add_argument(
        "--parts", nargs="+", required=True, help="train-clean-100, dev-other, ..."
    )
    parser.add_argument("--labelled", action="store_true", help="include transcripts")
    parser.add_argument("--name", required=True, help="name of the set")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the manifest"
    )
    args = parser.parse_args()
    setup_logging()
    with exit_on_error("prepare_librispeech"):
        cuts = read_cuts(args.source, args.parts, labelled=args.labelled)
        write_manifest(cuts, args.output / f"{args.name}.jsonl.gz")


if __name__ == "__main__":
    main()
