"""Export to ONNX in the layout of sherpa-onnx.

A transducer has three files: the encoder with the joiner's ``encoder_proj``, the
predictor with ``decoder_proj``, and the rest of the joiner.  A CTC recogniser has one
file: the encoder with the CTC head.  Inputs and outputs have icefall's names.  The
TorchScript exporter writes opset 13, which both torch 1.13 and torch 2 support.
"""

import inspect
import logging
import warnings
from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn

from icefall_kd import NUM_MEL_BINS
from icefall_kd.core.files import Pathlike, write_atomically
from icefall_kd.decoding.search import move_unk_to_blank
from icefall_kd.decoding.streaming import window_frames
from icefall_kd.export.files import (
    OUTPUTS,
    ModelFiles,
    add_metadata,
    offline_encoder_metadata,
    streaming_encoder_metadata,
)
from icefall_kd.recognition.options import Chunking
from icefall_kd.transducer.checkpoint import check_parts
from icefall_kd.zipformer.streaming import state_batch_dims

OPSET = 13
OUTPUT_LENS = {"transducer": "encoder_out_lens", "ctc": "log_probs_len"}
STATE_NAMES = (
    "cached_key",
    "cached_nonlin_attn",
    "cached_val1",
    "cached_val2",
    "cached_conv1",
    "cached_conv2",
)
SHERPA_EMBED_STATE = (128, 3, 19)  # channels, left frames, bins: fixed in sherpa-onnx


class CtcLogProbs(nn.Module):
    """Compute log-probabilities (N, T, V) without ``<unk>`` of encoder output."""

    def __init__(self, model: nn.Module, unk_id: Optional[int]):
        super().__init__()
        self.ctc_output = model.ctc_output
        self.unk_id = unk_id

    def forward(self, encoder_out: Tensor) -> Tensor:
        return move_unk_to_blank(self.ctc_output(encoder_out), self.unk_id)


class OfflineEncoder(nn.Module):
    """Full-context encoder, followed by the output layer ``top``."""

    def __init__(self, model: nn.Module, top: nn.Module):
        super().__init__()
        self.model = model
        self.top = top

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Return output (N, T', D) and its lengths for fbank (N, T, 80) and lengths."""
        encoder_out, lens = self.model.forward_encoder(x, x_lens)
        return self.top(encoder_out), lens


class StreamingEncoder(nn.Module):
    """Streaming encoder, followed by the output layer ``top``."""

    def __init__(self, model: nn.Module, top: nn.Module):
        super().__init__()
        self.model = model
        self.top = top

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Return output (N, C / 2, D) and new states for a chunk (N, T, 80)."""
        encoder_out, _, new_states = self.model.streaming_forward(x, list(states))
        return (self.top(encoder_out), *new_states)


class Predictor(nn.Module):
    """Predictor with the joiner's input projection."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.decoder = model.decoder
        self.projection = model.joiner.decoder_proj

    def forward(self, y: Tensor) -> Tensor:
        """Return (N, D) for contexts (N, context_size); sherpa-onnx needs two axes."""
        return self.projection(self.decoder(y, need_pad=False).squeeze(1))


class JoinerOutput(nn.Module):
    """Joiner without its input projections."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.joiner = model.joiner

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """Return logits (N, V) for projected encoder and predictor outputs (N, D)."""
        return self.joiner(encoder_out, decoder_out, project_input=False)


def export_model(
    model: nn.Module,
    folder: Pathlike,
    chunkings: Sequence[Optional[Chunking]] = (None,),
    head: str = "transducer",
    unk_id: Optional[int] = None,
) -> list[ModelFiles]:
    """Write the float32 files, with one encoder for each chunking.

    Args:
      model: ``AsrModel`` on the CPU, in eval mode.
      folder: output folder; created if missing.  The caller writes ``tokens.txt``.
      chunkings: chunks of each streaming encoder; None for full context.
      head: "transducer" or "ctc".
      unk_id: id of ``<unk>``, which the CTC model must not emit; None if the vocabulary
        has no ``<unk>``.
    Returns:
      the files of each chunking.
    Raises:
      ValueError: if a chunking does not fit the model, or the model lacks the head; no
        file is written.
    """
    check_parts(model, head)
    for chunking in chunkings:
        if chunking:
            check_chunking(model, chunking)
    is_ctc = head == "ctc"
    top = CtcLogProbs(model, unk_id) if is_ctc else model.joiner.encoder_proj
    exported = [
        ModelFiles.in_folder(folder, chunking, head=head) for chunking in chunkings
    ]
    for files in exported:
        if files.chunking:
            export_streaming_encoder(model, files.chunking, files.encoder, head, top)
        else:
            export_offline_encoder(model, files.encoder, head, top)
    if not is_ctc:
        export_decoder(model, exported[0].decoder)
        export_joiner(model, exported[0].joiner)
    return exported


def check_chunking(model: nn.Module, chunking: Chunking) -> None:
    """Check that the model can stream with these chunks.

    Raises:
      ValueError: if the model is not causal, or a size is not a positive multiple of
        the largest downsampling factor.
    """
    if not model.encoder.causal:
        raise ValueError(
            "the model is not causal and cannot stream; train with encoder.causal=true"
        )
    coarsest = max(model.encoder.config.downsampling_factor)
    for name, value in (
        ("chunk_size", chunking.chunk_size),
        ("left_context", chunking.left_context),
    ):
        if value <= 0 or value % max(coarsest, 2):
            raise ValueError(
                f"{name} {value} must be a positive multiple of the largest "
                f"downsampling factor, {coarsest}"
            )


def export_offline_encoder(
    model: nn.Module, path: Pathlike, head: str, top: nn.Module
) -> None:
    """Write the full-context encoder."""
    model.encoder.set_chunk(-1, -1)
    axes = {0: "N", 1: "T"}
    _export(
        OfflineEncoder(model, top),
        (torch.randn(2, 300, NUM_MEL_BINS), torch.tensor([300, 211])),
        path,
        {"x": axes, "x_lens": {0: "N"}},
        {OUTPUTS[head]: axes, OUTPUT_LENS[head]: {0: "N"}},
        offline_encoder_metadata(head),
    )


def export_streaming_encoder(
    model: nn.Module, chunking: Chunking, path: Pathlike, head: str, top: nn.Module
) -> None:
    """Write the streaming encoder, with states as inputs and outputs.

    Raises:
      ValueError: if the front end does not have the width that sherpa-onnx expects.
    """
    model.encoder.set_chunk(chunking.chunk_size, chunking.left_context)
    states = model.init_states(2, "cpu")
    if tuple(states[-2].shape[1:]) != SHERPA_EMBED_STATE:
        raise ValueError(
            f"the state of the front end is {tuple(states[-2].shape[1:])}, sherpa-onnx "
            f"needs {SHERPA_EMBED_STATE}: frontend_channels must end in 128"
        )
    layers = (len(states) - 2) // 6
    names = [f"{name}_{layer}" for layer in range(layers) for name in STATE_NAMES]
    names += ["embed_states", "processed_lens"]
    axes = {n: {dim: "N"} for n, dim in zip(names, state_batch_dims(len(states)))}
    _export(
        StreamingEncoder(model, top),
        (torch.randn(2, window_frames(chunking.chunk_size), NUM_MEL_BINS), *states),
        path,
        {"x": {0: "N"}, **axes},
        {OUTPUTS[head]: {0: "N"}, **{f"new_{n}": axis for n, axis in axes.items()}},
        streaming_encoder_metadata(model.encoder, chunking, head),
    )


def export_decoder(model: nn.Module, path: Pathlike) -> None:
    """Write the predictor, which maps -1 to a zero embedding."""
    size = model.decoder.context_size
    y = torch.tensor([[-1] * (size - 1) + [0], list(range(1, size + 1))])
    _export(
        Predictor(model),
        (y,),
        path,
        {"y": {0: "N"}},
        {"decoder_out": {0: "N"}},
        {"context_size": str(size), "vocab_size": str(model.decoder.vocab_size)},
    )


def export_joiner(model: nn.Module, path: Pathlike) -> None:
    """Write the joiner without its input projections."""
    dim = model.joiner.output_linear.in_features
    axis = {0: "N"}
    _export(
        JoinerOutput(model),
        (torch.randn(2, dim), torch.randn(2, dim)),
        path,
        {"encoder_out": axis, "decoder_out": axis},
        {"logit": axis},
        {"joiner_dim": str(dim)},
    )


@torch.no_grad()
def _export(
    module: nn.Module,
    inputs: Sequence[Tensor],
    path: Pathlike,
    input_axes: dict[str, dict[int, str]],
    output_axes: dict[str, dict[int, str]],
    metadata: dict[str, str],
) -> None:
    """Trace ``module`` and write it to an ONNX file.

    Args:
      input_axes, output_axes: name -> dynamic axes of each input and output, in order.
    """
    options = {}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        options["dynamo"] = False  # the default since torch 2.9, with another opset
    with write_atomically(path) as temporary, warnings.catch_warnings():
        # The tracer warns about each shape that Python reads.  Tests verify the files
        # with lengths and batch sizes that were not traced.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.onnx")
        torch.onnx.export(
            module.eval(),
            tuple(inputs),
            str(temporary),
            opset_version=OPSET,
            input_names=list(input_axes),
            output_names=list(output_axes),
            dynamic_axes={**input_axes, **output_axes},
            **options,
        )
        add_metadata(temporary, metadata)
    logging.info("wrote %s", path)
