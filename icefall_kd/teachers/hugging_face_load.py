"""Load speech encoders for ``transformers`` from a folder or the hub.

Weights that are missing in a checkpoint raise an error, where ``transformers`` only
warns and initialises them randomly.  No code of a repository is run, and ``.bin`` files
are read as weights only.
"""

import contextlib
import hashlib
import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from torch import nn

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.files import Pathlike, read_json
from icefall_kd.core.weights import cached_sha256
from icefall_kd.teachers.whisper_encoder import load_ct2_encoder

WAVE_TYPES = ("wav2vec2", "hubert", "wavlm", "data2vec-audio")
MODEL_TYPES = (*WAVE_TYPES, "whisper")

# Keys of config.json that do not change the output.
_IRRELEVANT_KEYS = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
}
_CONFIG_FILES = ["config.json", "preprocessor_config.json"]
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # in order of preference
_CT2_FILE = "model.bin"
_REMEDY = (
    "Give --model-dir a folder written by save_pretrained, or a hub name such as "
    "'microsoft/wavlm-large'"
)


@dataclass(frozen=True)
class LoadedEncoder:
    """A speech encoder and its configuration.

    Attributes:
      model:      the encoder of a Whisper, else the base model; float32, in eval mode.
      config:     of ``transformers``.
      model_type: one of :data:`MODEL_TYPES`.
      normalise:  whether the feature extractor normalises each utterance.
      identity:   entries of the fingerprint; they contain no path.
    """

    model: nn.Module
    config: Any
    model_type: str
    normalise: bool
    identity: dict[str, Any]


def load_encoder(model_dir: Pathlike, revision: Optional[str] = None) -> LoadedEncoder:
    """Load a speech encoder.

    Args:
      model_dir: a folder with config.json, preprocessor_config.json and the weights
        (safetensors or .bin, one file or several); a folder with the model.bin of a
        Whisper for CTranslate2; or a name on the hub.
      revision:  branch, tag or commit on the hub; the main branch when None.
    Raises:
      FileNotFoundError: if the folder or the name does not exist, or lacks a file.
      ValueError: if the model is not a speech encoder, its weights are incomplete or
        damaged, or ``transformers`` is not installed.
    """
    try:
        import transformers
    except ImportError as e:
        raise ValueError(
            f"{model_dir}: family 'hugging_face' needs transformers ({e}). Run: "
            "pip install transformers (with torch 1.13: 'transformers==4.48.3')"
        ) from e
    folder, hub = _find_folder(model_dir, revision)
    ct2_path = folder / _CT2_FILE
    if ct2_path.is_file():
        model, config = load_ct2_encoder(transformers, ct2_path)
        model_type, normalise = "whisper", False
        identity = {"model_type": "whisper", "model_sha256": cached_sha256(ct2_path)}
    else:
        model_type = _read_model_type(folder)
        weights = _find_weights(folder)
        config = transformers.AutoConfig.from_pretrained(str(folder))
        config.add_adapter = False  # its layers follow the encoder
        extractor = _load_extractor(transformers, folder, config)
        with _suppress_log(transformers):
            model = _load_model(transformers, folder, config, weights)
        normalise = model_type != "whisper" and bool(extractor.do_normalize)
        identity = {
            "model_type": model_type,
            "model_sha256": _hash_weights(weights),
            "config_sha256": _hash_config(folder),
            **hub,
        }
    model.eval().requires_grad_(False)
    return LoadedEncoder(model, config, model_type, normalise, identity)


def _find_folder(
    model_dir: Pathlike, revision: Optional[str]
) -> tuple[Path, dict[str, Any]]:
    """Return the model's folder, and its name and commit if it is from the hub."""
    name, folder = str(model_dir), Path(model_dir).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"revision: {folder} is a local folder and has no revisions. Leave the "
                "option out"
            )
        return folder, {}
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise FileNotFoundError(f"{name} is not a folder. {_REMEDY}")
    from huggingface_hub import snapshot_download

    for file in _WEIGHT_FILES:
        stem, suffix = file.split(".")
        wanted = [*_CONFIG_FILES, file, f"{file}.index.json", f"{stem}-*.{suffix}"]
        try:
            found = snapshot_download(name, revision=revision, allow_patterns=wanted)
        except (OSError, ValueError) as e:  # of requests and huggingface_hub
            raise FileNotFoundError(
                f"'{name}' is not a folder, and the download from the hub failed "
                f"({type(e).__name__}: {e}). Check the name, the network and the "
                f"access rights. {_REMEDY}"
            ) from e
        if list(Path(found).glob(f"{stem}*.{suffix}")):
            break
    # The folder of a snapshot has the name of its commit.
    return Path(found), {"hub_name": name, "commit": Path(found).name}


def _read_model_type(folder: Path) -> str:
    for file in _CONFIG_FILES:
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file} is missing. {_REMEDY}")
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"{folder / 'config.json'}: model_type '{model_type}' is not a supported "
            f"speech encoder. Available: {', '.join(MODEL_TYPES)}"
        )
    return model_type


def _find_weights(folder: Path) -> list[Path]:
    """Return the files of the weights, all safetensors or all .bin."""
    for file in _WEIGHT_FILES:
        index = folder / f"{file}.index.json"
        if (folder / file).is_file():
            paths = [folder / file]
        elif index.is_file():
            names = sorted(set(read_json(index)["weight_map"].values()))
            paths = [folder / name for name in names]
        else:
            continue
        missing = [str(path) for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"{', '.join(missing)} is missing. {_REMEDY}")
        return paths
    raise FileNotFoundError(f"{folder} lacks {' and '.join(_WEIGHT_FILES)}. {_REMEDY}")


def _load_extractor(transformers: Any, folder: Path, config: Any) -> Any:
    extractor = transformers.AutoFeatureExtractor.from_pretrained(str(folder))
    supported = {"sampling_rate": SAMPLE_RATE}
    if config.model_type == "whisper":
        supported.update(n_fft=400, hop_length=160, feature_size=config.num_mel_bins)
    found = {key: getattr(extractor, key, None) for key in supported}
    if found != supported:
        raise ValueError(
            f"{folder / 'preprocessor_config.json'}: {found} is not supported. Use a "
            f"model with {supported}"
        )
    return extractor


def _load_model(
    transformers: Any, folder: Path, config: Any, weights: list[Path]
) -> nn.Module:
    """Return the encoder of a Whisper, otherwise the base model."""
    from safetensors import SafetensorError

    try:
        model, info = transformers.AutoModel.from_pretrained(
            str(folder),
            config=config,
            use_safetensors=weights[0].suffix == ".safetensors",
            local_files_only=True,
            output_loading_info=True,
        )
    except (
        *(OSError, RuntimeError, ValueError, KeyError),
        *(SafetensorError, pickle.UnpicklingError),
    ) as e:
        raise ValueError(f"{folder}: cannot load the weights ({e})") from e
    prefix = f"{model.base_model_prefix}."
    missing = [
        k[len(prefix) :] if k.startswith(prefix) else k for k in info["missing_keys"]
    ]
    # Only pre-training uses masked_spec_embed.
    missing = sorted(name for name in missing if name != "masked_spec_embed")
    if config.model_type == "whisper":
        missing = [k for k in missing if k.startswith("encoder.")]
        model = model.get_encoder()
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} weights of the encoder are missing in "
            f"{weights[0].name}, for example {missing[:5]}. {_REMEDY}"
        )
    return model


@contextlib.contextmanager
def _suppress_log(transformers: Any) -> Iterator[None]:
    """Suppress warnings about missing weights, which :func:`_load_model` checks."""
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


def _hash_weights(paths: list[Path]) -> str:
    """Return the SHA-256 of the file, or of the joined checksums of several files."""
    sums = [cached_sha256(path) for path in paths]
    if len(sums) == 1:
        return sums[0]
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def _hash_config(folder: Path) -> str:
    config = read_json(folder / "config.json")
    relevant = {k: v for k, v in config.items() if k not in _IRRELEVANT_KEYS}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()
