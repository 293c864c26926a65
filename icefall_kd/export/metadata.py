"""What sherpa-onnx reads from the metadata of the ONNX files.

It ends the process, without a Python exception, when a key is missing or an encoder is
of the other kind.  So the keys are written in one place and checked in one place.
"""

from collections.abc import Mapping, Sequence

from icefall_kd.core.files import Pathlike, write_atomically
from icefall_kd.decoding.streaming import hop_frames, tail_padding, window_frames
from icefall_kd.export.files import ModelFiles
from icefall_kd.recognition.setting import Chunking
from icefall_kd.zipformer.encoder import Zipformer2

MODEL_TYPE = "zipformer2"
OFFLINE_CTC = "zipformer2_ctc"  # icefall's name; a streaming one has MODEL_TYPE
OUTPUTS = {"transducer": "encoder_out", "ctc": "log_probs"}  # first of an encoder
STREAMING_KEYS = (
    "encoder_dims",
    "query_head_dims",
    "value_head_dims",
    "num_heads",
    "num_encoder_layers",
    "cnn_module_kernels",
    "left_context_len",
    "T",
    "decode_chunk_len",
)
DECODER_KEYS = ("context_size", "vocab_size")


def _join(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


def model_type(streaming: bool, head: str) -> str:
    """Return what sherpa-onnx calls this kind of encoder."""
    return OFFLINE_CTC if head == "ctc" and not streaming else MODEL_TYPE


def offline_encoder_metadata(head: str) -> dict[str, str]:
    """Return the metadata of an encoder that reads whole utterances.

    ``tail_padding``, in seconds of digital silence that a client appends to the audio,
    is for people: sherpa-onnx does not read it.
    """
    return {
        "model_type": model_type(False, head),
        "version": "1",
        "model_author": "icefall_kd",
        "comment": f"non-streaming zipformer2 {head}",
        "tail_padding": "0",
    }


def streaming_encoder_metadata(
    encoder: Zipformer2, chunking: Chunking, head: str
) -> dict[str, str]:
    """Return the metadata of an encoder that reads chunks.

    sherpa-onnx makes the initial states from them.  Left contexts are in frames of
    each stack's own rate; ``T`` and ``decode_chunk_len`` in fbank frames.
    """
    left = [chunking.left_context // d for d in encoder.downsampling_factor]
    return {
        **offline_encoder_metadata(head),
        "model_type": model_type(True, head),
        "comment": f"streaming zipformer2 {head}",
        "tail_padding": str(tail_padding(chunking.chunk_size)),
        "T": str(window_frames(chunking.chunk_size)),
        "decode_chunk_len": str(hop_frames(chunking.chunk_size)),
        "num_encoder_layers": _join(encoder.num_encoder_layers),
        "encoder_dims": _join(encoder.encoder_dim),
        "cnn_module_kernels": _join(encoder.cnn_module_kernel),
        "left_context_len": _join(left),
        "query_head_dims": _join(encoder.query_head_dim),
        "value_head_dims": _join(encoder.value_head_dim),
        "num_heads": _join(encoder.num_heads),
    }


def add_metadata(path: Pathlike, metadata: Mapping[str, str]) -> None:
    """Write ``metadata`` into an ONNX file."""
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, dict(metadata))
    with write_atomically(path) as aside:
        onnx.save(model, str(aside))


def read_metadata(path: Pathlike) -> dict[str, str]:
    """Read the metadata of an ONNX file."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return {p.key: p.value for p in model.metadata_props}


def read_outputs(path: Pathlike) -> list[str]:
    """Read the names of an ONNX file's outputs."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return [output.name for output in model.graph.output]


def require_sherpa_metadata(files: ModelFiles) -> None:
    """See that sherpa-onnx can open the files as the kind of recogniser they name.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if metadata are missing or of the other kind; the message names file,
        keys and remedy.
    """
    files.require()
    encoder = read_metadata(files.encoder)
    output = read_outputs(files.encoder)[0]
    if output != OUTPUTS[files.head]:
        raise ValueError(
            f"{files.encoder}: gives {output}, a {files.head} recogniser needs "
            f"{OUTPUTS[files.head]}; export it with --head {files.head}"
        )
    streaming = "decode_chunk_len" in encoder
    expected = model_type(streaming, files.head)
    if encoder.get("model_type") != expected:
        raise ValueError(
            f"{files.encoder}: model_type is {encoder.get('model_type')!r}, not "
            f"{expected!r}; export the model again"
        )
    if streaming != (files.chunking is not None):
        kinds = ("whole utterances", "chunks")
        raise ValueError(
            f"{files.encoder}: this encoder reads {kinds[streaming]}, wanted is one "
            f"for {kinds[not streaming]}; export that kind"
        )
    wanted = []
    if files.decoder:
        wanted.append((files.decoder, read_metadata(files.decoder), DECODER_KEYS))
    if streaming:
        wanted.append((files.encoder, encoder, STREAMING_KEYS))
    for path, metadata, keys in wanted:
        missing = [k for k in keys if k not in metadata]
        if missing:
            raise ValueError(f"{path}: lacks the metadata {missing}; export it again")
