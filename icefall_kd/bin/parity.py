"""Compare our model with the outputs of a reference implementation.

    python -m icefall_kd.bin.parity FILE.npz [--tolerance 1e-4] [--backend torch]

The command loads the weights of a parity file (see ``icefall_kd/transducer/parity.py``)
and computes the outputs that the file has.  A file of the pruned RNN-T has its values
and gradients instead of weights.  The command prints a line for each output, with its
name and the largest absolute difference.  The exit status is 1 if a difference exceeds
the tolerance, and 2 if the file is invalid.
"""

import sys
from typing import Optional, get_args

import numpy as np
import torch

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.transducer.parity import compare, compare_rnnt, is_rnnt, load_arrays
from icefall_kd.transducer.rnnt import Backend


def main(argv: Optional[list[str]] = None) -> int:
    """Run the command; return its exit status."""
    parser = create_parser(__doc__)
    parser.add_argument("file", help="parity file, .npz")
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest absolute difference (default: 1e-4, 1e-6 in float64)",
    )
    parser.add_argument(
        "--backend",
        choices=get_args(Backend),
        default="auto",
        help="of the transducer losses",
    )
    args = parser.parse_args(argv)
    # The order of sums depends on the number of threads, and changes the last bits.
    torch.set_num_threads(1)
    within = True
    with exit_on_error("parity"):
        try:
            arrays = load_arrays(args.file)
            is_double = is_rnnt(arrays) and arrays["am"].dtype == np.float64
            tolerance = args.tolerance or (1e-6 if is_double else 1e-4)
            differences = compare_rnnt if is_rnnt(arrays) else compare
            for difference in differences(arrays, args.backend):
                print(f"{difference.name} {difference.largest:.3g}")
                within = within and difference.is_within(tolerance)
        except (ValueError, FileNotFoundError) as e:
            print(f"parity: {e}", file=sys.stderr)
            return 2
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
