"""The files of a Zipformer teacher: its checkpoint and its tokens.

A Zipformer as a teacher: one that this project trained, or one of icefall.

What it says of an utterance depends on that utterance alone, and its frames lie on the
grid of a field: see :mod:`icefall_kd.teachers.zipformer_frames`.
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
from icefall_kd.teachers.protocol import (
    DTYPES,
    KINDS,
    LayerChoice,
    Layers,
    Output,
    TeacherOutput,
    check_waves,
)
from icefall_kd.teachers.zipformer_frames import (
    HEAD_OF,
    STACK_STEP,
    BestPaths,
    fbank_and_silence,
    on_grid,
    own_frames,
)
from icefall_kd.transducer.checkpoint import HEADS, check_head, load_model
from icefall_kd.transducer.field_encoder import ModelEnsemble
from icefall_kd.transducer.icefall import HEAD_OPTIONS
from icefall_kd.zipformer.subsampling import conv2d_subsampling_lens

PRETRAINED = "pretrained.pt"
BPE_MODEL = "bpe.model"


def checkpoint_path(model_dir: Pathlike) -> Path:
    """Return the checkpoint that ``model_dir`` is or holds.

    Raises:
      FileNotFoundError: if it is a folder without ``pretrained.pt``.
    """
    path = Path(model_dir)
    if not path.is_dir():
        return path
    if not (path / PRETRAINED).is_file():
        found = sorted(p.name for p in path.glob("*.pt"))
        raise FileNotFoundError(
            f"{path} holds no {PRETRAINED}; give the checkpoint itself, of those that "
            f"it holds: {found or 'none'}"
        )
    return path / PRETRAINED


def find_tokenizer(
    path: Path,
    carried: Optional[Tokenizer],
    bpe_model: Optional[Pathlike],
    vocab_size: int,
) -> Tokenizer:
    """Return what the model's tokens are: as given, as carried, or as lies beside it.

    Raises:
      ValueError: if there is no BPE model, it has another number of tokens, or the
        file that is given has other tokens than the checkpoint carries.
    """
    beside = path.with_name(BPE_MODEL)
    tokenizer = carried
    if bpe_model is not None:
        tokenizer = Tokenizer(bpe_model)
        if carried is not None and _tokens(carried) != _tokens(tokenizer):
            raise ValueError(
                f"bpe_model {bpe_model} has other tokens than {path} carries; leave "
                "the option out"
            )
    elif carried is None and beside.is_file():
        tokenizer = Tokenizer(beside)
    if tokenizer is None:
        raise ValueError(
            f"{path} carries no BPE model, without which nobody knows what its tokens "
            f"are; give the option bpe_model, or put {BPE_MODEL} beside it"
        )
    if tokenizer.vocab_size != vocab_size:
        raise ValueError(
            f"{path} has {vocab_size} tokens, its BPE model {tokenizer.vocab_size}; "
            "give the one that it was trained with"
        )
    return tokenizer


def _tokens(tokenizer: Tokenizer) -> list:
    return [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]


class ZipformerTeacher:
    """Encoder output, outputs of stacks, and token distributions of a Zipformer.

    Args:
      name:      the teacher's name; its fields are ``<name>``, ``<name>_layer<k>`` for
                 several stacks, ``<name>_ctc`` and ``<name>_path``.
      model_dir: a checkpoint, ours or icefall's, or a folder with ``pretrained.pt``.
      outputs:   any of "embedding", "ctc", and "path": the joiner's distributions on
                 the one-best path of the transcript, or of what a beam search finds
                 where there is none.
      layers:    "last" is the encoder's output at 25 Hz; numbers are stacks at 50 Hz,
                 counted from 0 or, negative, from the end, each as the stack behind it
                 gets it, brought back to 50 Hz.  One gives the field ``<name>``,
                 several one field each.
      layer_weights: of a sum of ``layers``, which is then the field ``<name>``.
      topk:      tokens that a frame of "ctc" or "path" keeps.
      beam:      hypotheses of the search for paths without transcript.
      chunk_size: 50 Hz frames, -1 is full context; else the model must be causal.
      left_context: of chunks, 50 Hz frames, -1 is unlimited.
      bpe_model: file, for "ctc" or "path" of a checkpoint that does not carry its own
                 (icefall's) and has none beside it.
      dtype:     of autocast on CUDA; on a CPU "float32".
      device:    "cpu" or "cuda".
      num_threads: not used: torch has one number of threads for all models.
      heads:     of a model of icefall, see :mod:`icefall_kd.transducer.icefall`.
    Raises:
      FileNotFoundError: if there is no checkpoint.
      ValueError: if it is none, or has not what the options ask for.
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
        path = checkpoint_path(model_dir)
        self.name = name
        self._device, self._dtype = torch.device(device), DTYPES[dtype]
        model, tokenizer, info = load_model(path, device, heads=heads, needed=())
        if model.fields:
            raise ValueError(
                f"{path} encodes fields, not audio: use family 'vocab_teacher'"
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
        self._ctc_field, self._topk = f"{name}_ctc", topk
        self._path_field = f"{name}_path"
        self.needs_text = "path" in outputs
        if "embedding" in outputs:
            self._add_embeddings(layers, layer_weights)
        of_tokens = [kind for kind in ("ctc", "path") if kind in outputs]
        if not of_tokens:
            return
        for kind in of_tokens:
            check_head(model, HEAD_OF[kind], info, str(path))
        tokenizer = find_tokenizer(path, tokenizer, bpe_model, model.vocab_size)
        if not 1 <= topk <= tokenizer.vocab_size:
            raise ValueError(f"topk is {topk} of {tokenizer.vocab_size} tokens")
        if "ctc" in outputs:
            self._add_tokens("ctc", tokenizer, 2 * topk + 1)
        if "path" in outputs:
            self._add_tokens("path", tokenizer, 2 * topk + 2, beam=beam)
            self._paths = BestPaths(ModelEnsemble([model]), tokenizer, topk, beam)

    def _add_embeddings(
        self, layers: Layers, weights: Optional[Sequence[float]]
    ) -> None:
        """Describe the embeddings of ``layers``."""
        dims = self._model.encoder.config.encoder_dim
        stacks = choose_stacks(layers, len(dims))
        if weights is not None:
            check_sum(stacks, weights, dims)
            weights = tuple(map(float, weights))
        chosen: dict[str, dict[str, Any]] = {self.name: {"layers": "last"}}
        if stacks:
            self._stacks = LayerChoice(stacks, weights)
            chosen = self._stacks.fields(self.name)
        common = {**self._fingerprint, "model_sha256": self._sha256()}
        for field, layers in chosen.items():
            step, dim = self._output_step, self._model.encoder_dim
            if stacks:
                step, dim = STACK_STEP, dims[layers["layers"][0]]
            self.outputs[field] = Output(
                "embedding", dim, step / SAMPLE_RATE, {**common, **layers}
            )

    def _add_tokens(
        self, kind: str, tokenizer: Tokenizer, dim: int, **options: Any
    ) -> None:
        """Describe an output of distributions over the tokens of ``tokenizer``."""
        fingerprint = {
            **self._fingerprint,
            "model_sha256": self._sha256(*HEADS[HEAD_OF[kind]]),
            "topk": self._topk,
            **options,
            "vocab_sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
        }
        shift = self._output_step / SAMPLE_RATE
        self.outputs[f"{self.name}_{kind}"] = Output(kind, dim, shift, fingerprint)

    def _sha256(self, *more: str) -> str:
        """Return the hash of the encoder's tensors, and those of ``more`` parts."""
        parts = ("encoder_embed", "encoder", *more)
        weights = self._model.state_dict()
        return sha256_tensors(
            {k: v for k, v in weights.items() if k.split(".")[0] in parts}
        )

    @torch.no_grad()
    def forward(
        self, waves: Tensor, wave_lens: Tensor, texts: Sequence[str] = ()
    ) -> dict[str, TeacherOutput]:
        """Return the outputs of a batch, on the model's device.

        T of an embedding is ceil(samples / samples of a frame), of "ctc" and "path"
        what the model makes, ((F - 7) // 2 + 1) // 2 of F frames of fbank.

        Args:
          waves:     (N, S) float32, 16 kHz, in [-1, 1].
          wave_lens: (N,) int64, valid samples.
          texts:     N transcripts for "path", "" where there is none.
        Raises:
          ValueError: if the shapes do not fit.
        """
        check_waves(waves, wave_lens)
        model, wave_lens = self._model, wave_lens.to(self._device)
        x, lens = fbank_and_silence(waves, wave_lens, model.encoder, self._device)
        half = self._dtype != torch.float32
        with torch.autocast(self._device.type, self._dtype if half else None, half):
            y, y_lens, stacks = model.forward_stacks(x, lens)
            said = {}
            if self._ctc_field in self.outputs:
                ctc = pack_topk(model.ctc_output(y), self._topk)
                said[self._ctc_field] = own_frames(ctc, y_lens)
        if self._path_field in self.outputs:
            own = own_frames(y, y_lens)
            said[self._path_field] = self._paths([own.x], own.lens, texts)
        if self._stacks is not None:
            stack_lens = conv2d_subsampling_lens(lens)
            picked = self._stacks.pick(self.name, dict(enumerate(stacks)))
            for field, frames in picked.items():
                said[field] = on_grid(frames, stack_lens, wave_lens, STACK_STEP)
        elif self.name in self.outputs:
            said[self.name] = on_grid(y, y_lens, wave_lens, self._output_step)
        return {field: said[field] for field in self.outputs}


def choose_stacks(layers: Layers, num_stacks: int) -> tuple[int, ...]:
    """Return the numbers of the stacks, counted from 0; none for "last".

    Raises:
      ValueError: if there is no such stack, or one is named twice.
    """
    if layers == "last":
        return ()
    numbers = (layers,) if isinstance(layers, (int, str)) else tuple(layers)
    known = range(-num_stacks, num_stacks)
    if not numbers or not all(isinstance(k, int) and k in known for k in numbers):
        raise ValueError(
            f"layers {layers!r}: the model has stacks 0 .. {num_stacks - 1}, and 'last'"
        )
    stacks = tuple(k % num_stacks for k in numbers)
    if len(set(stacks)) != len(stacks):
        raise ValueError(f"layers {layers!r} name a stack twice")
    return stacks


def check_sum(
    stacks: Sequence[int], weights: Sequence[float], dims: Sequence[int]
) -> None:
    """Refuse a weighted sum of stacks that there cannot be.

    Raises:
      ValueError: for another number of weights, or stacks of several sizes.
    """
    if not stacks or len(weights) != len(stacks):
        raise ValueError(
            f"{len(weights)} layer_weights for the layers {list(stacks) or 'last'}; "
            "give a number for each layer, and layers by their numbers"
        )
    if len({dims[k] for k in stacks}) > 1:
        raise ValueError(
            f"layers {list(stacks)} have {[dims[k] for k in stacks]} channels and "
            "cannot be summed; leave out layer_weights for a field each"
        )


def _check_options(
    outputs: Sequence[str],
    dtype: str,
    device: str,
    chunk_size: int,
    left_context: int,
    heads: dict[str, Any],
) -> None:
    if not outputs or set(outputs) - set(KINDS):
        raise ValueError(f"outputs {outputs}: a Zipformer has {KINDS}")
    if set(heads) - set(HEAD_OPTIONS):
        raise ValueError(f"a Zipformer has no option {sorted(heads)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype '{dtype}': there are {', '.join(DTYPES)}")
    kind = torch.device(device).type
    if kind == "cpu" and dtype != "float32":
        raise ValueError(f"dtype '{dtype}' is for CUDA; on a CPU it is float32")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device '{device}': torch sees no CUDA device")
    if chunk_size == -1 and left_context != -1:
        raise ValueError(f"left_context {left_context} needs a chunk_size")
