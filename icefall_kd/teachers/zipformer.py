"""Zipformers as teachers, trained by this project or by icefall.

:mod:`icefall_kd.teachers.zipformer_frames` pads each utterance so that its output does
not depend on the batch, and shifts the output to the frame times of a field.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import torch
from torch import Tensor

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.files import Pathlike
from icefall_kd.core.frames import pack_topk
from icefall_kd.core.weights import sha256_tensors
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.teachers.base import (
    DTYPES,
    KINDS,
    LayerChoice,
    Layers,
    Output,
    Teacher,
    TeacherOutput,
    check_waves,
    choose_layers,
)
from icefall_kd.teachers.paths import HEAD_OF_KIND, BestPaths
from icefall_kd.teachers.zipformer_frames import (
    STACK_STEP,
    compute_padded_fbank,
    mask_padding,
    shift_to_field,
)
from icefall_kd.transducer.checkpoint import ENCODER, HEADS, check_head, load_model
from icefall_kd.transducer.field_encoder import ModelEnsemble
from icefall_kd.transducer.icefall import HEAD_OPTIONS
from icefall_kd.zipformer.subsampling import conv2d_subsampling_lens

PRETRAINED = "pretrained.pt"
BPE_MODEL = "bpe.model"


def find_checkpoint(model_dir: Pathlike) -> Path:
    """Return the checkpoint: ``model_dir`` itself, or ``pretrained.pt`` in it.

    Raises:
      FileNotFoundError: if ``model_dir`` is a folder without ``pretrained.pt``.
    """
    path = Path(model_dir)
    if not path.is_dir():
        return path
    if not (path / PRETRAINED).is_file():
        found = sorted(p.name for p in path.glob("*.pt"))
        raise FileNotFoundError(
            f"{path} has no {PRETRAINED}. Give the path of a checkpoint. Available: "
            f"{', '.join(found) or 'none'}"
        )
    return path / PRETRAINED


def load_tokenizer(
    path: Path,
    saved: Optional[Tokenizer],
    bpe_model: Optional[Pathlike],
    vocab_size: int,
) -> Tokenizer:
    """Return the tokenizer of a checkpoint.

    It is the first that exists of: ``bpe_model``, ``saved``, and the file ``bpe.model``
    in the folder of the checkpoint.

    Args:
      path:       of the checkpoint.
      saved:      tokenizer that the checkpoint contains, if any.
      bpe_model:  the option of the teacher.
      vocab_size: of the checkpoint.
    Raises:
      ValueError: if no BPE model exists, it has another number of tokens than the
        checkpoint, or ``bpe_model`` has other tokens than ``saved``.
    """
    neighbour = path.with_name(BPE_MODEL)
    tokenizer = saved
    if bpe_model is not None:
        tokenizer = Tokenizer(bpe_model)
        if saved is not None and _list_pieces(saved) != _list_pieces(tokenizer):
            raise ValueError(
                f"bpe_model {bpe_model} has other tokens than the BPE model in {path}. "
                "Leave the option out"
            )
    elif saved is None and neighbour.is_file():
        tokenizer = Tokenizer(neighbour)
    if tokenizer is None:
        raise ValueError(
            f"{path} contains no BPE model, so its tokens are unknown. Set the option "
            f"bpe_model, or copy {BPE_MODEL} into its folder"
        )
    if tokenizer.vocab_size != vocab_size:
        raise ValueError(
            f"{path} has {vocab_size} tokens, its BPE model {tokenizer.vocab_size}. "
            "Set the option bpe_model to the BPE model of its training"
        )
    return tokenizer


def _list_pieces(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]


class ZipformerTeacher(Teacher):
    """Encoder output, stacks, and token distributions of a Zipformer.

    Args:
      name:      of the teacher; its fields are ``<name>``, or ``<name>_layer<k>`` for
                 each of several stacks, ``<name>_ctc`` and ``<name>_path``.
      model_dir: a checkpoint, ours or icefall's, or a folder with ``pretrained.pt``.
      outputs:   any of "embedding", "ctc" and "path"; see
                 :class:`icefall_kd.teachers.paths.BestPaths`.
      layers:    "last" is the encoder's output at 25 Hz.  Layer k is the output of
                 stack k at 50 Hz, counted from 0, or negative from the end.  One is the
                 field ``<name>``, several are one field each.
      layer_weights: one for each stack; the field ``<name>`` is the weighted sum.
      topk:      number of tokens to store in a frame of "ctc" or "path".
      beam:      number of hypotheses in the search for the path of an utterance without
                 transcript.
      chunk_size: of a causal model, in frames of 20 ms; -1 is full context.
      left_context: of chunks, in frames of 20 ms; -1 is unlimited.
      bpe_model: file of the tokens, for "ctc" or "path" of a checkpoint that does not
                 contain them (icefall's).
      dtype:     "fp16" and "bf16" use autocast, only on CUDA; "float32" does not.
      device:    "cpu" or "cuda".
      num_threads: not used: PyTorch has one number of threads for all models.
      heads:     number and dimensions of attention heads for a checkpoint of icefall:
                 :data:`icefall_kd.transducer.icefall.HEAD_OPTIONS`.
    Raises:
      FileNotFoundError: if the checkpoint does not exist.
      ValueError: if the file is not a checkpoint, or an option does not suit the model.
    """

    def __init__(
        self,
        name: str,
        model_dir: Pathlike,
        *,
        outputs: Union[str, Sequence[str]] = ("embedding",),
        layers: Layers = "last",
        layer_weights: Optional[Sequence[float]] = None,
        topk: int = 10,
        beam: int = 4,
        chunk_size: int = -1,
        left_context: int = -1,
        bpe_model: Optional[Pathlike] = None,
        dtype: str = "float32",
        device: str = "cpu",
        num_threads: Optional[int] = None,
        **heads: Any,
    ) -> None:
        outputs = (outputs,) if isinstance(outputs, str) else tuple(outputs)
        _check_options(outputs, dtype, device, chunk_size, left_context, heads)
        path = find_checkpoint(model_dir)
        self.name = name
        self.needs_text = "path" in outputs
        self._device, self._dtype = torch.device(device), DTYPES[dtype]
        model, tokenizer, info = load_model(path, device, heads=heads, needed=())
        if model.fields:
            raise ValueError(
                f"{path} encodes fields, not audio. Use family 'vocab_teacher'"
            )
        self._model = model.requires_grad_(False)
        model.encoder.set_chunk(chunk_size, left_context)
        self._output_step = STACK_STEP * model.encoder.downsample_output.factor
        self._fingerprint = {
            "teacher": name,
            "family": "zipformer",
            "num_heads": list(model.encoder.config.num_heads),
            "chunk_size": chunk_size,
            "left_context": left_context,
            "dtype": dtype,
        }
        self.outputs: dict[str, Output] = {}
        self._stacks: Optional[LayerChoice] = None  # None: the encoder's output
        self._ctc_field, self._path_field = f"{name}_ctc", f"{name}_path"
        self._topk = topk
        if "embedding" in outputs:
            self._describe_embeddings(layers, layer_weights)
        kinds = [kind for kind in ("ctc", "path") if kind in outputs]
        if not kinds:
            return
        for kind in kinds:
            check_head(model, HEAD_OF_KIND[kind], info, str(path))
        tokenizer = load_tokenizer(path, tokenizer, bpe_model, model.vocab_size)
        if not 1 <= topk <= tokenizer.vocab_size:
            raise ValueError(f"topk: {topk} is outside 1..{tokenizer.vocab_size}")
        if "ctc" in outputs:
            self._describe_tokens("ctc", tokenizer, 2 * topk + 1)
        if "path" in outputs:
            self._describe_tokens("path", tokenizer, 2 * topk + 2, beam=beam)
            self._paths = BestPaths(ModelEnsemble([model]), tokenizer, topk, beam)

    def _describe_embeddings(
        self, layers: Layers, weights: Optional[Sequence[float]]
    ) -> None:
        """Add the outputs of kind "embedding"."""
        dims = self._model.encoder.config.encoder_dim
        chosen: dict[str, dict[str, Any]] = {self.name: {"layers": "last"}}
        if layers != "last":
            self._stacks = choose_layers(layers, weights, len(dims) - 1)
            chosen = self._stacks.describe_fields(self.name)
            stack_dims = [dims[k] for k in self._stacks.layers]
            if weights is not None and len(set(stack_dims)) > 1:
                raise ValueError(
                    f"layer_weights: layers {list(self._stacks.layers)} have "
                    f"{stack_dims} channels and cannot be summed. Leave the option out "
                    "to get one field for each"
                )
        elif weights is not None:
            raise ValueError(
                "layer_weights: needs numbers of stacks, but layers is 'last'. Leave "
                "the option out, or set layers"
            )
        fingerprint = {**self._fingerprint, "model_sha256": self._hash_parts()}
        for field, choice in chosen.items():
            step, dim = self._output_step, self._model.encoder_dim
            if self._stacks is not None:
                step, dim = STACK_STEP, dims[choice["layers"][0]]
            self.outputs[field] = Output(
                "embedding", dim, step / SAMPLE_RATE, {**fingerprint, **choice}
            )

    def _describe_tokens(
        self, kind: str, tokenizer: Tokenizer, dim: int, **options: Any
    ) -> None:
        """Add an output of token distributions."""
        fingerprint = {
            **self._fingerprint,
            "model_sha256": self._hash_parts(*HEADS[HEAD_OF_KIND[kind]]),
            "topk": self._topk,
            **options,
            "vocab_sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
        }
        shift = self._output_step / SAMPLE_RATE
        self.outputs[f"{self.name}_{kind}"] = Output(kind, dim, shift, fingerprint)

    def _hash_parts(self, *heads: str) -> str:
        """Return the SHA-256 of the weights of the encoder and of ``heads``."""
        parts = (*ENCODER, *heads)
        weights = self._model.state_dict()
        return sha256_tensors(
            {k: v for k, v in weights.items() if k.split(".")[0] in parts}
        )

    @torch.no_grad()
    def forward(
        self, waves: Tensor, wave_lens: Tensor, texts: Sequence[str] = ()
    ) -> dict[str, TeacherOutput]:
        """Return the outputs of a batch, on the model's device.

        T of an embedding is ceil(samples / 640) for the encoder's output at 25 Hz and
        ceil(samples / 320) for stacks.  T of "ctc" and "path" is that of the model,
        ((F - 7) // 2 + 1) // 2 for F frames of fbank.
        """
        check_waves(waves, wave_lens)
        model, wave_lens = self._model, wave_lens.to(self._device)
        x, lens = compute_padded_fbank(waves, wave_lens, model.encoder, self._device)
        is_half = self._dtype != torch.float32
        outputs = {}
        with torch.autocast(
            self._device.type, self._dtype if is_half else None, is_half
        ):
            y, y_lens, stacks = model.forward_stacks(x, lens)
            if self._ctc_field in self.outputs:
                ctc = pack_topk(model.ctc_output(y), self._topk)
                outputs[self._ctc_field] = mask_padding(ctc, y_lens)
        if self._path_field in self.outputs:
            masked = mask_padding(y, y_lens)
            outputs[self._path_field] = self._paths([masked.x], masked.lens, texts)
        if self._stacks is not None:
            stack_lens = conv2d_subsampling_lens(lens)
            selected = self._stacks.select(self.name, dict(enumerate(stacks)))
            for field, frames in selected.items():
                outputs[field] = shift_to_field(
                    frames, stack_lens, wave_lens, STACK_STEP
                )
        elif self.name in self.outputs:
            outputs[self.name] = shift_to_field(y, y_lens, wave_lens, self._output_step)
        return {field: outputs[field] for field in self.outputs}


def _check_options(
    outputs: Sequence[str],
    dtype: str,
    device: str,
    chunk_size: int,
    left_context: int,
    heads: dict[str, Any],
) -> None:
    if not outputs or set(outputs) - set(KINDS):
        raise ValueError(
            f"outputs: {list(outputs)} is invalid. Available: {', '.join(KINDS)}"
        )
    if set(heads) - set(HEAD_OPTIONS):
        raise ValueError(
            f"family 'zipformer' has no option {sorted(heads)}. For a checkpoint of "
            f"icefall, available: {', '.join(HEAD_OPTIONS)}"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype: unknown '{dtype}'. Available: {', '.join(DTYPES)}")
    kind = torch.device(device).type
    if kind == "cpu" and dtype != "float32":
        raise ValueError(f"dtype: {dtype} needs device cuda. Use float32 on a CPU")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device: '{device}' does not exist, torch finds no CUDA GPU. Use cpu"
        )
    if chunk_size == -1 and left_context != -1:
        raise ValueError(
            f"left_context: {left_context} needs a chunk_size. Set it, or leave "
            "left_context out"
        )
