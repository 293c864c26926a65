"""Download and unpack parts of LibriSpeech into FOLDER/LibriSpeech.

    python local/fetch_librispeech.py FOLDER PART...

Skips existing parts, and resumes an interrupted download.
"""

from pathlib import Path

from lhotse.recipes.librispeech import LIBRISPEECH, download_librispeech

from icefall_kd.core.cli import create_parser, exit_on_error


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("folder", type=Path, help="parent folder of LibriSpeech/")
    parser.add_argument("parts", nargs="+", choices=sorted(LIBRISPEECH))
    args = parser.parse_args()
    # lhotse deletes a part that lacks its completion marker.  Skip a part without its
    # archive: the user unpacked it.
    parts = [
        part
        for part in args.parts
        if not (args.folder / "LibriSpeech" / part).is_dir()
        or (args.folder / f"{part}.tar.gz").exists()
    ]
    with exit_on_error("fetch_librispeech"):
        download_librispeech(args.folder, dataset_parts=parts)


if __name__ == "__main__":
    main()
