"""Loads the speech encoders of ``transformers``, from a folder or the hub.

A folder may also hold a Whisper in CTranslate2's form, the one that
:mod:`icefall_kd.teachers.fetch` obtains.

Nothing is guessed: weights of the encoder that the checkpoint lacks, which
``transformers`` would draw at random with a warning, are an error.  No code of a
repository is run, and a ``.bin`` is read as weights only.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

from torch import nn

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.files import read_json
from icefall_kd.core.weights import cached_sha256
from icefall_kd.teachers.whisper_ct2 import load_ct2_encoder

WAVE_TYPES = ("wav2vec2", "hubert", "wavlm", "data2vec-audio")
MODEL_TYPES = (*WAVE_TYPES, "whisper")

# The configuration's keys that say where it was written, not what it computes.
_NOTES = {"_name_or_path", "architectures", "torch_dtype", "transformers_version"}
_SMALL_FILES = ["config.json", "preprocessor_config.json"]
_FORMS = ("model.safetensors", "pytorch_model.bin")  # the first is preferred
_CT2_FILE = "model.bin"
_REMEDY = (
    "give --model-dir a folder written by save_pretrained, or a hub name such as "
    "'microsoft/wavlm-large'"
)


@dataclass(frozen=True)
class Loaded:
    """A speech encoder as its folder has it.

    Attributes:
      model:      of a Whisper the encoder, otherwise the base model; eval, float32.
      config:     of ``transformers``.
      model_type: one of :data:`MODEL_TYPES`.
      normalise:  whether the feature extractor normalises each utterance.
      identity:   what a fingerprint says of it; no path.
    """

    model: nn.Module
    config: Any
    model_type: str
    normalise: bool
    identity: dict[str, Any]


def load_encoder(model_dir: Union[str, Path], revision: Optional[str] = None) -> Loaded:
    """Load a speech encoder.

    Args:
      model_dir: a folder with config.json, preprocessor_config.json and the weights
        (safetensors or .bin, in one file or several); a folder with the model.bin of a
        Whisper for CTranslate2; or a name on the hub.
      revision:  branch, tag or commit on the hub; the main branch when None.
    Raises:
      FileNotFoundError: if the folder or the name does not exist, or lacks a file.
      ValueError: if it is no speech encoder, its weights are incomplete or damaged,
        or ``transformers`` is not installed.
    """
    transformers = _import_transformers(model_dir)
    folder, identity = _locate(model_dir, revision)
    if (folder / _CT2_FILE).is_file():
        return _load_ct2(transformers, folder / _CT2_FILE)
    model_type = _check_type(folder)
    weights, safe = _find_weights(folder)
    config = transformers.AutoConfig.from_pretrained(str(folder))
    config.add_adapter = False  # what follows the encoder is not run
    extractor = _load_extractor(transformers, folder, config)
    with _quiet(transformers):
        model, missing = _load_model(transformers, folder, config, safe)
    if model_type == "whisper":
        missing = [k for k in missing if k.startswith("encoder.")]
        model = model.get_encoder()
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} weights of the encoder are missing from "
            f"{weights[0].name}, for example {missing[:5]}; {_REMEDY}"
        )
    identity = {
        "model_type": model_type,
        "model_sha256": _weights_sha256(weights),
        "config_sha256": _config_sha256(folder),
        **identity,
    }
    normalise = model_type != "whisper" and bool(extractor.do_normalize)
    model.eval().requires_grad_(False)
    return Loaded(model, config, model_type, normalise, identity)


def _load_ct2(transformers: Any, path: Path) -> Loaded:
    model, config = load_ct2_encoder(transformers, path)
    model.eval().requires_grad_(False)
    identity = {"model_type": "whisper", "model_sha256": cached_sha256(path)}
    return Loaded(model, config, "whisper", False, identity)


def _import_transformers(model_dir: Union[str, Path]) -> Any:
    try:
        import transformers

        return transformers
    except ImportError as e:
        raise ValueError(
            f"{model_dir}: a teacher of family 'hugging_face' needs transformers "
            f"({e}): pip install 'transformers==4.48.3'"
        ) from e


def _locate(
    model_dir: Union[str, Path], revision: Optional[str]
) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the files, and where on the hub they are from."""
    name, folder = str(model_dir), Path(model_dir).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision: {folder} is a folder, it has no revisions")
        return folder, {}
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise FileNotFoundError(f"{name} is no folder; {_REMEDY}")
    from huggingface_hub import snapshot_download

    for form in _FORMS:
        stem, suffix = form.split(".")
        wanted = [*_SMALL_FILES, form, f"{form}.index.json", f"{stem}-*.{suffix}"]
        try:
            found = snapshot_download(name, revision=revision, allow_patterns=wanted)
        except (OSError, ValueError) as e:  # of requests and huggingface_hub
            raise FileNotFoundError(
                f"'{name}' is no folder here, and it cannot be had from the hub "
                f"({type(e).__name__}: {e}). Remedy: check the name, the network and "
                f"the access rights; or {_REMEDY}"
            ) from e
        if list(Path(found).glob(f"{stem}*.{suffix}")):
            break
    # Snapshots are named after their commits.
    return Path(found), {"hub_name": name, "commit": Path(found).name}


def _check_type(folder: Path) -> str:
    for file in _SMALL_FILES:
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file} is missing; {_REMEDY}")
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"{folder / 'config.json'}: model_type '{model_type}' is none of the "
            f"speech encoders known here, {', '.join(MODEL_TYPES)}"
        )
    return model_type


def _find_weights(folder: Path) -> tuple[list[Path], bool]:
    """Return the files of the weights, and whether they are safetensors."""
    for form in _FORMS:
        index = folder / f"{form}.index.json"
        if (folder / form).is_file():
            paths = [folder / form]
        elif index.is_file():
            names = sorted(set(read_json(index)["weight_map"].values()))
            paths = [folder / name for name in names]
        else:
            continue
        absent = [str(path) for path in paths if not path.is_file()]
        if absent:
            raise FileNotFoundError(f"{', '.join(absent)} is missing; {_REMEDY}")
        return paths, form.endswith(".safetensors")
    raise FileNotFoundError(f"{folder} holds neither {' nor '.join(_FORMS)}; {_REMEDY}")


def _load_extractor(transformers: Any, folder: Path, config: Any) -> Any:
    extractor = transformers.AutoFeatureExtractor.from_pretrained(str(folder))
    wanted = {"sampling_rate": SAMPLE_RATE}
    if config.model_type == "whisper":
        wanted.update(n_fft=400, hop_length=160, feature_size=config.num_mel_bins)
    found = {key: getattr(extractor, key, None) for key in wanted}
    if found != wanted:
        raise ValueError(
            f"{folder / 'preprocessor_config.json'}: the teacher would need {found}, "
            f"known here is {wanted}"
        )
    return extractor


def _load_model(
    transformers: Any, folder: Path, config: Any, safe: bool
) -> tuple[nn.Module, list[str]]:
    """Return the base model and the names of its weights that are missing."""
    from safetensors import SafetensorError

    try:
        model, info = transformers.AutoModel.from_pretrained(
            str(folder),
            config=config,
            use_safetensors=safe,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as e:
        raise ValueError(f"{folder}: the weights cannot be loaded ({e})") from e
    prefix = f"{model.base_model_prefix}."
    names = [
        k[len(prefix) :] if k.startswith(prefix) else k for k in info["missing_keys"]
    ]
    # The vector that masks frames in pre-training is of no use later.
    return model, sorted(n for n in names if n != "masked_spec_embed")


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep what the library says while it loads to errors: we check ourselves."""
    log = transformers.utils.logging
    before, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        if bar:
            log.enable_progress_bar()


def _weights_sha256(paths: list[Path]) -> str:
    """Return the checksum of the weights; of several files, over their checksums."""
    sums = [cached_sha256(path) for path in paths]
    if len(sums) == 1:
        return sums[0]
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def _config_sha256(folder: Path) -> str:
    config = read_json(folder / "config.json")
    kept = {k: v for k, v in config.items() if k not in _NOTES}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
