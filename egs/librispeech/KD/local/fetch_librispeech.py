"""Download parts of LibriSpeech into FOLDER/LibriSpeech, and unpack them.

    python local/fetch_librispeech.py FOLDER PART...

A part that is there is left alone, an archive that was cut off goes on.
"""

import argparse

from lhotse.recipes.librispeech import LIBRISPEECH, download_librispeech


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("parts", nargs="+", choices=sorted(LIBRISPEECH))
    args = parser.parse_args()
    try:
        download_librispeech(args.folder, dataset_parts=args.parts)
    except OSError as e:
        raise SystemExit(f"fetch_librispeech: {e}") from e


if __name__ == "__main__":
    main()
