"""Metadata of exported files, and errors for missing files and metadata."""

import dataclasses
import shutil
import subprocess
import sys

import onnx
import pytest

from icefall_kd.export.files import (
    ModelFiles,
    check_sherpa_metadata,
    read_metadata,
    streaming_encoder_metadata,
)
from icefall_kd.recognition.options import Chunking


def test_streaming_metadata_describe_the_stacks(exports):
    metadata = read_metadata(exports["chunk-16"].encoder)
    expected = {
        "model_type": "zipformer2",
        "T": "45",
        "tail_padding": "0.75",
        "decode_chunk_len": "32",
        "num_encoder_layers": "1,1,1",
        "encoder_dims": "32,48,64",
        "cnn_module_kernels": "15,15,7",
        "left_context_len": "64,32,16",
        "query_head_dims": "8,8,8",
        "value_head_dims": "8,4,8",
        "num_heads": "2,4,2",
    }
    assert expected.items() <= metadata.items()


def test_full_context_metadata_have_the_kind_of_model(exported, exported_ctc):
    for files, kind in ((exported, "zipformer2"), (exported_ctc, "zipformer2_ctc")):
        metadata = read_metadata(files["full"].encoder)
        assert (metadata["model_type"], metadata["tail_padding"]) == (kind, "0")


def test_decoder_and_joiner_have_their_metadata(exported):
    files = exported["full"]
    assert read_metadata(files.decoder) == {"context_size": "2", "vocab_size": "90"}
    assert read_metadata(files.joiner) == {"joiner_dim": "32"}


def test_metadata_have_tail_padding_of_the_chunk(student):
    for size, seconds in ((16, "0.75"), (32, "1.07"), (64, "1.71")):
        chunking = Chunking(size, 128)
        for head in ("transducer", "ctc"):
            metadata = streaming_encoder_metadata(student.encoder, chunking, head)
            assert metadata["tail_padding"] == seconds


def test_complete_files_pass(exports):
    for files in exports.values():
        check_sherpa_metadata(files)


def test_missing_file_is_reported_with_existing_ones(exported, tmp_path):
    files = exported["full"]
    for path in (*files.onnx, files.tokens):
        shutil.copy(path, tmp_path)
    wanted = ModelFiles.in_folder(tmp_path, exported["chunk-16"].chunking)
    with pytest.raises(
        FileNotFoundError, match=r"chunk-16-left-64.*\['encoder.onnx'\]"
    ):
        check_sherpa_metadata(wanted)


def test_encoder_of_other_kind_is_refused(exported):
    full, chunks = exported["full"], exported["chunk-16"]
    with pytest.raises(ValueError, match="is full-context"):
        check_sherpa_metadata(dataclasses.replace(chunks, encoder=full.encoder))
    with pytest.raises(ValueError, match="is streaming"):
        check_sherpa_metadata(dataclasses.replace(full, encoder=chunks.encoder))


@pytest.mark.parametrize("kind", ["full", "chunk-16"])
def test_encoder_of_other_head_is_refused(exported, exported_ctc, kind):
    transducer, ctc = exported[kind], exported_ctc[kind]
    with pytest.raises(ValueError, match="encoder_out.*--head ctc"):
        check_sherpa_metadata(dataclasses.replace(ctc, encoder=transducer.encoder))
    with pytest.raises(ValueError, match="log_probs.*--head transducer"):
        check_sherpa_metadata(dataclasses.replace(transducer, encoder=ctc.encoder))


def test_missing_file_of_other_head_is_reported(exported):
    missing = ModelFiles.in_folder(exported["full"].folder, head="ctc")
    with pytest.raises(FileNotFoundError, match=r"model.onnx.*--head ctc.*none"):
        missing.check_exist()


def without(path, key, folder):
    """Copy an ONNX file without one metadata key."""
    model = onnx.load(str(path))
    kept = {p.key: p.value for p in model.metadata_props if p.key != key}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, kept)
    onnx.save(model, str(folder / path.name))
    return folder / path.name


@pytest.mark.parametrize("key", ["T", "left_context_len", "num_heads", "model_type"])
def test_missing_encoder_metadata_are_reported(exported, tmp_path, key):
    files = exported["chunk-16"]
    broken = dataclasses.replace(files, encoder=without(files.encoder, key, tmp_path))
    with pytest.raises(ValueError, match=key):
        check_sherpa_metadata(broken)


def test_missing_decoder_metadata_are_reported(exported, tmp_path):
    files = exported["full"]
    decoder = without(files.decoder, "vocab_size", tmp_path)
    with pytest.raises(ValueError, match="decoder.onnx.*vocab_size"):
        check_sherpa_metadata(dataclasses.replace(files, decoder=decoder))


def test_sherpa_ends_the_process_without_metadata(exported, tmp_path):
    files = exported["full"]
    decoder = without(files.decoder, "vocab_size", tmp_path)
    code = (
        "import sherpa_onnx; sherpa_onnx.OfflineRecognizer.from_transducer("
        f"encoder={str(files.encoder)!r}, decoder={str(decoder)!r}, "
        f"joiner={str(files.joiner)!r}, tokens={str(files.tokens)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
