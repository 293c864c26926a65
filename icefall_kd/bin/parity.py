"""Compare our model with the tensors of a reference implementation.

    python -m icefall_kd.bin.parity FILE.npz [--tolerance 1e-4]

Loads the file's weights by name, computes every output that the file holds and prints
one line for each: ``name max_abs_diff``.  Exit status 1 if one is above the tolerance,
2 if the file cannot be used.
"""

import sys
from typing import Optional

import torch

from icefall_kd.core.cli import create_parser, exit_on_error, require_packages
from icefall_kd.transducer.parity import compare, load_arrays


def main(argv: Optional[list[str]] = None) -> int:
    """Run the command; return its exit status."""
    parser = create_parser(__doc__)
    parser.add_argument("file", help=".npz with config, weights, inputs and outputs")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest absolute difference"
    )
    args = parser.parse_args(argv)
    # Sums in another order differ in their last bits; one thread has one order.
    torch.set_num_threads(1)
    within = True
    with exit_on_error("parity"):
        try:
            arrays = load_arrays(args.file)
            if {"simple_loss", "pruned_loss"} & set(arrays):
                require_packages("k2")
            for gap in compare(arrays):
                print(f"{gap.name} {gap.largest:.3g}")
                within = within and gap.within(args.tolerance)
        except (ValueError, FileNotFoundError) as e:
            print(f"parity: {e}", file=sys.stderr)
            return 2
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
