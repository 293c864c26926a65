"""Average the last epochs of a run into one model for decoding and export.

    python -m icefall_kd.bin.average --exp-dir exp/a --epoch 30 --avg 5

This writes exp/a/pretrained.pt: the student with its configuration and BPE model.
"""

from pathlib import Path

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.logs import setup_logging
from icefall_kd.training.checkpoint import write_average


def main() -> None:
    """Run the command."""
    parser = create_parser(__doc__)
    add = parser.add_argument
    add("--exp-dir", type=Path, required=True, help="folder of the run")
    add("--epoch", type=int, default=0, help="last epoch; 0 is the newest")
    add("--avg", type=int, default=1, help="number of epochs to average, up to --epoch")
    add("--output", type=Path, help="output file (default: EXP_DIR/pretrained.pt)")
    args = parser.parse_args()
    setup_logging()
    output = args.output or args.exp_dir / "pretrained.pt"
    with exit_on_error("average"):
        write_average(args.exp_dir, args.epoch, args.avg, output)
    print(output)


if __name__ == "__main__":
    main()
