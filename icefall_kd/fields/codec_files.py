"""The state of a trained codec, on disk with the field: ``<field>.codec.npz``."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from icefall_kd.core.files import Pathlike, write_atomically
from icefall_kd.fields.codecs import Codec, find_codec, make_codec
from icefall_kd.fields.format import FieldInfo, field_dir, list_shar, load_field_info

_SPEC, _ORIGIN = "spec", "origin"  # entries of the file beside the state's arrays


def codec_path(shar_dir: Pathlike, field: str) -> Path:
    """Return the path of the state of a field's codec."""
    return field_dir(shar_dir, field) / f"{field}.codec.npz"


def codec_sha256(codec: Codec) -> Optional[str]:
    """Return what tells two trainings of a codec apart; None for one without state."""
    state = codec.state()
    if not state:
        return None
    digest = hashlib.sha256(codec.spec.encode())
    for name in sorted(state):
        array = np.ascontiguousarray(state[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_codec(
    codec: Codec,
    shar_dir: Pathlike,
    field: str,
    origin: Optional[Mapping[str, Any]] = None,
) -> None:
    """Write the state of a trained codec, whole or not at all.

    Args:
      origin: what it was trained on and how, fit for JSON; see :func:`read_origin`.
    """
    buffer = io.BytesIO()
    entries = {_SPEC: codec.spec, _ORIGIN: json.dumps(origin or {}, sort_keys=True)}
    arrays = {name: np.array(text) for name, text in entries.items()}
    np.savez(buffer, **arrays, **codec.state())
    with write_atomically(codec_path(shar_dir, field)) as aside:
        aside.write_bytes(buffer.getvalue())


def read_codec(shar_dir: Pathlike, field: str) -> Codec:
    """Read a trained codec.

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: if it is damaged or of another form.
    """
    return _read(shar_dir, field)[0]


def read_origin(shar_dir: Pathlike, field: str) -> dict[str, Any]:
    """Return what a codec was trained on and how; empty when that was not told.

    Raises:
      FileNotFoundError, ValueError: as :func:`read_codec`.
    """
    return _read(shar_dir, field)[1]


def _read(shar_dir: Pathlike, field: str) -> tuple[Codec, dict[str, Any]]:
    path = codec_path(shar_dir, field)
    if not path.is_file():
        list_shar(shar_dir)  # may move it to its place
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: without it the field cannot be decoded. Copy it from "
            "where the field was made, or extract the field again with --overwrite"
        )
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            state: dict[str, np.ndarray] = {name: file[name] for name in file.files}
        origin = json.loads(str(state.pop(_ORIGIN)))
        return make_codec(str(state.pop(_SPEC)), state), origin
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as e:
        raise ValueError(f"{path}: not the state of a codec, or damaged ({e})") from e


def load_codec(shar_dir: Pathlike, info: FieldInfo) -> Codec:
    """Return the codec that decodes a field.

    Raises:
      FileNotFoundError: if its state is missing.
      ValueError: if its state is not the one that the field was written with.
    """
    if not find_codec(info.codec)[0].trained:
        return make_codec(info.codec)
    codec = read_codec(shar_dir, info.name)
    if codec.spec != info.codec or codec_sha256(codec) != info.codec_sha256:
        raise ValueError(
            f"{codec_path(shar_dir, info.name)} is not the codec that the field "
            f"'{info.name}' was written with ({info.codec}); copy both from one place, "
            "or extract the field again with --overwrite"
        )
    return codec


def load_decoder(shar_dir: Pathlike, field: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that decodes the arrays of a field as lhotse reads them.

    For programs that open a Shar folder with lhotse's ``CutSet.from_shar``:

        decode = load_decoder("data/shar/train", "whisper_base")
        target = decode(cut.load_whisper_base())

    Its argument is an array as stored, (T, ...) of the codec's type, or any part of it
    in time.  It returns (T, W) float32, whose meaning for each kind of field is
    documented in :class:`icefall_kd.teachers.Output`.

    Raises:
      FileNotFoundError, ValueError: as :func:`load_field_info`, :func:`load_codec`.
    """
    return load_codec(shar_dir, load_field_info(shar_dir, field)).decode


def load_codecs(shar_dir: Pathlike, fields: Sequence[str]) -> dict[str, Codec]:
    """Return the codecs of fields of a folder; else as :func:`load_codec`."""
    return {f: load_codec(shar_dir, load_field_info(shar_dir, f)) for f in fields}
