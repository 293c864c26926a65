"""Write a manifest of the dialogue of Flight of the Amazon Queen, without text.

    python local/prepare_queen.py --source download/pool --audio data/audio/queen \\
        --max-minutes 40 --name unlabelled_en_quick --output data/manifests
"""

from icefall_kd.corpora.manifests import create_corpus_parser, write_corpus
from icefall_kd.corpora.queen import read_dialogue


def main() -> None:
    parser = create_corpus_parser(__doc__)
    parser.add_argument(
        "--max-minutes",
        type=float,
        help="duration of a subset in minutes (default: all)",
    )
    args = parser.parse_args()
    write_corpus("prepare_queen", args, read_dialogue, args.max_minutes)


if __name__ == "__main__":
    main()
