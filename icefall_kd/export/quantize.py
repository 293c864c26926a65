"""Quantise to 8 bits, and accept the files only if the WER increases little.

In some trained models, a matrix has a few large weights, so 8 bits represent the others
badly.  The encoder matrices with the largest errors then stay in float32.  If the WER
is still too high, no 8-bit file remains.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Callable, Optional

import numpy as np

from icefall_kd.core.files import Pathlike, write_atomically
from icefall_kd.export.files import ModelFiles

MAX_WER_LOSS = 0.3  # percent absolute
EXCLUDED_SHARES = (0.0, 0.25, 0.5)  # shares of matrices in float32, in order of trial
OPERATORS = ("MatMul",)
DECODER_OPERATORS = ("MatMul", "Gather")  # Gather is the predictor's embedding


@dataclass(frozen=True)
class Int8Result:
    """WER of 8-bit files in percent, compared with float32.

    Attributes:
      max_loss: maximum increase of the WER, in percent absolute.
      float_nodes: number of the encoder's matrices that stay in float32.
    """

    wer_float: float
    wer_int8: float
    max_loss: float
    float_nodes: int

    @property
    def loss(self) -> float:
        return self.wer_int8 - self.wer_float

    @property
    def accepted(self) -> bool:
        return self.loss <= self.max_loss + 1e-9

    def as_dict(self) -> dict:
        return {**asdict(self), "loss": self.loss, "accepted": self.accepted}


class Int8Refused(ValueError):
    """The WER of all 8-bit models is too high.

    Attributes:
      result: result of the best model; None if no model was tried.
    """

    def __init__(self, message: str, result: Optional[Int8Result] = None):
        super().__init__(message)
        self.result = result


def quantize_checked(
    files: ModelFiles,
    compute_wer: Callable[[ModelFiles], float],
    max_loss: float = MAX_WER_LOSS,
) -> Int8Result:
    """Write 8-bit files whose WER is at most ``max_loss`` higher than that of float32.

    Args:
      files: float32 files.
      compute_wer: decodes a set with the given files and returns its WER in percent.
      max_loss: in percent absolute.
    Raises:
      Int8Refused: if the WER is too high for all shares in :data:`EXCLUDED_SHARES`;
        the 8-bit files are removed.
    """
    wer_float = compute_wer(files)
    total = len(matrix_errors(files.encoder))
    results = []
    for share in EXCLUDED_SHARES:
        int8 = quantize_model(files, share)
        float_nodes = round(share * total)
        result = Int8Result(wer_float, compute_wer(int8), max_loss, float_nodes)
        logging.info(
            "%s: WER %.2f %%, float32 %.2f %%, loss %+.2f (%d of %d matrices float32)",
            *(int8.encoder.name, result.wer_int8, wer_float, result.loss),
            *(float_nodes, total),
        )
        if result.accepted:
            return result
        results.append(result)
    remove_int8(int8)
    best = min(results, key=lambda r: r.loss)
    raise Int8Refused(
        f"{int8.encoder.name}: WER {best.wer_int8:.2f} %, float32 "
        f"{best.wer_float:.2f} %, a loss of {best.loss:.2f} absolute, more than "
        f"{best.max_loss:.2f}; the int8 files are removed, use the float32 files",
        best,
    )


def quantize_model(files: ModelFiles, excluded_share: float = 0.0) -> ModelFiles:
    """Write the ``.int8.onnx`` files next to the float32 files.

    Args:
      files: float32 files.
      excluded_share: share of the encoder's matrices that stay in float32, those with
        the largest errors.
    Returns:
      the 8-bit files.
    """
    int8 = files.int8
    ranked = [name for name, _ in matrix_errors(files.encoder)]
    exclude = ranked[: round(excluded_share * len(ranked))]
    quantize_file(files.encoder, int8.encoder, OPERATORS, exclude)
    if files.head == "transducer":
        quantize_file(files.decoder, int8.decoder, DECODER_OPERATORS)
        quantize_file(files.joiner, int8.joiner, OPERATORS)
    return int8


def matrix_errors(path: Pathlike) -> list[tuple[str, float]]:
    """Return the quantisation error of each constant matrix of an ONNX file.

    Returns:
      name and relative error |W - Q(W)| / |W| of each MatMul node with a constant
      weight W, the largest error first.  Q has one scale per matrix.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    weights = {i.name: i for i in graph.initializer}
    errors = []
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            w = numpy_helper.to_array(weights[node.input[1]]).astype(np.float64)
            step = max(np.abs(w).max() / 127, 1e-30)
            error = np.linalg.norm(w - np.round(w / step) * step)
            errors.append((node.name, float(error / max(np.linalg.norm(w), 1e-30))))
    return sorted(errors, key=lambda e: -e[1])


def quantize_file(
    source: Pathlike,
    target: Pathlike,
    op_types: Sequence[str],
    exclude: Sequence[str] = (),
) -> None:
    """Quantise the weights of an ONNX file to 8-bit integers.

    ONNX Runtime quantises the activations at run time.  Metadata are kept.

    Args:
      source: float32 file.
      target: 8-bit file to write.
      op_types: ONNX operators to quantise, for example ``["MatMul"]``.
      exclude: names of nodes that stay in float32.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    disabled_level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # quantize_dynamic logs a line per float32 node
    try:
        with write_atomically(target) as temporary:
            quantize_dynamic(
                model_input=str(source),
                model_output=str(temporary),
                op_types_to_quantize=list(op_types),
                nodes_to_exclude=list(exclude),
                weight_type=QuantType.QInt8,
            )
    finally:
        logging.disable(disabled_level)


def remove_int8(files: ModelFiles) -> None:
    """Delete the 8-bit encoder, and the other files if no other encoder needs them."""
    files.encoder.unlink(missing_ok=True)
    if files.head == "transducer" and not any(files.folder.glob("encoder*.int8.onnx")):
        files.decoder.unlink(missing_ok=True)
        files.joiner.unlink(missing_ok=True)
