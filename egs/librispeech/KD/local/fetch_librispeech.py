"""Download parts of LibriSpeech into FOLDER/LibriSpeech, and unpack them.

    python local/fetch_librispeech.py FOLDER PART...

A part that is there is left alone, one that was unpacked by hand as well; an archive
that was cut off goes on.
"""

import argparse
from pathlib import Path

from lhotse.recipes.librispeech import LIBRISPEECH, download_librispeech


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("parts", nargs="+", choices=sorted(LIBRISPEECH))
    args = parser.parse_args()
    root = Path(args.folder)
    # lhotse deletes a part that it did not mark as whole.  Without an archive beside it
    # it is none that lhotse was unpacking.
    parts = [
        part
        for part in args.parts
        if not (root / "LibriSpeech" / part).is_dir()
        or (root / f"{part}.tar.gz").exists()
    ]
    try:
        download_librispeech(root, dataset_parts=parts)
    except OSError as e:
        raise SystemExit(f"fetch_librispeech: {e}") from e


if __name__ == "__main__":
    main()
