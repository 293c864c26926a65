"""Write a manifest of the dialogue of Flight of the Amazon Queen, without text.

    python local/prepare_queen.py --source download/pool --audio data/audio/queen \\
        --max-minutes 40 --name unlabelled_en_quick --output data/manifests
"""

from icefall_kd.core.cli import exit_on_error
from icefall_kd.core.logs import setup_logging
from icefall_kd.corpora.audio import store_clips
from icefall_kd.corpora.manifests import create_corpus_parser, write_manifest
from icefall_kd.corpora.queen import read_dialogue


def main() -> None:
    parser = create_corpus_parser(__doc__)
    parser.add_argument(
        "--max-minutes",
        type=float,
        help="duration of a subset in minutes (default: all)",
    )
    args = parser.parse_args()
    setup_logging()
    with exit_on_error("prepare_queen"):
        cuts = store_clips(read_dialogue(args.source, args.max_minutes), args.audio)
        write_manifest(cuts, args.output / f"{args.name}.jsonl.gz")


if __name__ == "__main__":
    main()
