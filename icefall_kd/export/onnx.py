"""Export to ONNX in the layout that sherpa-onnx reads.

A transducer is three files: the encoder with the joiner's ``encoder_proj``, the
predictor with ``decoder_proj``, and the rest of the joiner.  A CTC recogniser is one:
the encoder with the CTC head.  Inputs and outputs have icefall's names; opset 13 by the
TorchScript exporter, which torch 1.13 and 2.x both have.
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
from icefall_kd.decoding.ctc_search import move_unk_to_blank
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
    """Encoder output (N, T, C) to log-probabilities (N, T, V), without ``<unk>``."""

    def __init__(self, model: nn.Module, unk_id: Optional[int]):
        super().__init__()
        self.ctc_output = model.ctc_output
        self.unk_id = unk_id

    def forward(self, encoder_out: Tensor) -> Tensor:
        return move_unk_to_blank(self.ctc_output(encoder_out), self.unk_id)


class OfflineEncoder(nn.Module):
    """(N, T, 80) and lengths to what ``top`` makes of them (N, T', D) and lengths."""

    def __init__(self, model: nn.Module, top: nn.Module):
        super().__init__()
        self.model = model
        self.top = top

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        encoder_out, lens = self.model.forward_encoder(x, x_lens)
        return self.top(encoder_out), lens


class StreamingEncoder(nn.Module):
    """A chunk (N, T, 80) and the states to ``top``'s (N, C/2, D) and states."""

    def __init__(self, model: nn.Module, top: nn.Module):
        super().__init__()
        self.model = model
        self.top = top

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        encoder_out, _, new_states = self.model.streaming_forward(x, list(states))
        return (self.top(encoder_out), *new_states)


class Predictor(nn.Module):
    """Contexts (N, context_size) to projected predictor output (N, D)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.decoder = model.decoder
        self.projection = model.joiner.decoder_proj

    def forward(self, y: Tensor) -> Tensor:
        # 2-D: sherpa-onnx hands it to the joiner as it is.
        return self.projection(self.decoder(y, need_pad=False).squeeze(1))


class JoinerOutput(nn.Module):
    """Projected (N, D) and (N, D) to logits (N, V)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.joiner = model.joiner

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        return self.joiner(encoder_out, decoder_out, project_input=False)


@torch.no_grad()
def _export(
    module: nn.Module,
    inputs: Sequence[Tensor],
    path: Pathlike,
    input_axes: dict[str, dict[int, str]],
    output_axes: dict[str, dict[int, str]],
    metadata: Optional[dict[str, str]] = None,
) -> None:
    """Trace ``module`` and write it; the dicts give names in order, dynamic axes."""
    options = {}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        options["dynamo"] = False  # the default since torch 2.9, with another opset
    with write_atomically(path) as aside, warnings.catch_warnings():
        # The tracer warns of every shape that Python reads; the tests run the files
        # at other lengths and batch sizes than those traced.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.onnx")
        torch.onnx.export(
            module.eval(),
            tuple(inputs),
            str(aside),
            opset_version=OPSET,
            input_names=list(input_axes),
            output_names=list(output_axes),
            dynamic_axes={**input_axes, **output_axes},
            **options,
        )
        if metadata:
            add_metadata(aside, metadata)
    logging.info("wrote %s", path)


def export_offline_encoder(
    model: nn.Module, path: Pathlike, head: str, top: nn.Module
) -> None:
    """Write the encoder that reads whole utterances, full context in every frame."""
    model.encoder.set_chunk(-1, -1)
    lens = torch.tensor([300, 211])
    axes = {0: "N", 1: "T"}
    _export(
        OfflineEncoder(model, top),
        (torch.randn(2, 300, NUM_MEL_BINS), lens),
        path,
        {"x": axes, "x_lens": {0: "N"}},
        {OUTPUTS[head]: axes, OUTPUT_LENS[head]: {0: "N"}},
        offline_encoder_metadata(head),
    )


def export_streaming_encoder(
    model: nn.Module, chunking: Chunking, path: Pathlike, head: str, top: nn.Module
) -> None:
    """Write the encoder that reads chunks and carries states.

    Raises:
      ValueError: if the model is not causal, the left context does not divide into
        every stack's rate, or the front end is not what sherpa-onnx expects.
    """
    require_streamable(model, chunking)
    model.encoder.set_chunk(chunking.chunk_size, chunking.left_context)
    states = model.init_states(2, "cpu")
    if tuple(states[-2].shape[1:]) != SHERPA_EMBED_STATE:
        raise ValueError(
            f"the front end's state is {tuple(states[-2].shape[1:])}, sherpa-onnx "
            f"makes {SHERPA_EMBED_STATE}: frontend_channels must end in 128"
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


def require_streamable(model: nn.Module, chunking: Chunking) -> None:
    """Raise ValueError if the model cannot stream in these chunks."""
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


def export_decoder(model: nn.Module, path: Pathlike) -> None:
    """Write the predictor; -1 in its input reads as a zero embedding."""
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


def export_model(
    model: nn.Module,
    folder: Pathlike,
    chunkings: Sequence[Optional[Chunking]] = (None,),
    head: str = "transducer",
    unk_id: Optional[int] = None,
) -> list[ModelFiles]:
    """Write float32 files: one encoder for each chunking (None: whole utterances).

    Args:
      model: ``AsrModel`` on the CPU, in eval mode.
      folder: is made when absent; ``tokens.txt`` is not written here.
      chunkings: of the encoders.
      head: "transducer" or "ctc".
      unk_id: of a CTC recogniser, which must never emit it; None: there is none.
    Returns:
      the files, one entry for each chunking.
    Raises:
      ValueError: if a chunking does not fit the model, or it lacks the head; nothing
        is written then.
    """
    check_parts(model, head)
    for chunking in chunkings:
        if chunking:
            require_streamable(model, chunking)
    ctc = head == "ctc"
    top = CtcLogProbs(model, unk_id) if ctc else model.joiner.encoder_proj
    written = [ModelFiles.of(folder, chunking, head=head) for chunking in chunkings]
    for files in written:
        if files.chunking:
            export_streaming_encoder(model, files.chunking, files.encoder, head, top)
        else:
            export_offline_encoder(model, files.encoder, head, top)
    if not ctc:
        export_decoder(model, written[0].decoder)
        export_joiner(model, written[0].joiner)
    return written
