"""Compare our model with the outputs of a reference implementation.

    python -m icefall_kd.bin.parity FILE.npz [--tolerance 1e-4]

The command loads the weights of a parity file (see ``icefall_kd/transducer/parity.py``)
and computes the outputs that the file has.  It prints a line for each output, with its
name and the largest absolute difference.  The exit status is 1 if a difference exceeds
the tolerance, and 2 if the file is invalid.
"""

import sys
from typing import Optional

import torch

from icefall_kd.core.cli import create_parser, exit_on_error, require_packages
from icefall_kd.transducer.parity import compare, load_arrays


def main(argv: Optional[list[str]] = None) -> int:
    """Run the command; return its exit status."""
    parser = create_parser(__doc__)
    parser.add_argument("file", help="parity file, .npz")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest absolute difference"
    )
    args = parser.parse_args(argv)
    # The order of sums depends on the number of threads, and changes the last bits.
    torch.set_num_threads(1)
    within = True
    with exit_on_error("parity"):
        try:
            arrays = load_arrays(args.file)
            if {"simple_loss", "pruned_loss"} & set(arrays):
                require_packages("k2")
            for difference in compare(arrays):
                print(f"{difference.name} {difference.largest:.3g}")
                within = within and difference.is_within(args.tolerance)
        except (ValueError, FileNotFoundError) as e:
            print(f"parity: {e}", file=sys.stderr)
            return 2
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
