"""8-bit weights, and the rule that they may not cost words.

Some trained models have weights that 8 bits cannot hold beside their largest ones; the
encoder's worst matrices are then tried in float32, and when that does not help either,
there is no 8-bit model.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Callable, Optional

import numpy as np

from icefall_kd.core.files import Pathlike, write_atomically
from icefall_kd.export.files import ModelFiles

MAX_WER_LOSS = 0.3  # percent absolute
EXCLUDED_SHARES = (0.0, 0.25, 0.5)  # of the encoder's matrices, kept in float32
OPERATORS = ("MatMul",)
DECODER_OPERATORS = ("MatMul", "Gather")  # its embedding is a Gather


@dataclass(frozen=True)
class Int8Result:
    """What 8 bits cost; WERs in percent.

    Attributes:
      float_nodes: matrices of the encoder that stay in float32.
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
    """No 8-bit model is as good as it must be; ``report`` is of the best tried.

    ``report`` is None if none was tried.
    """

    def __init__(self, message: str, report: Optional[Int8Result] = None):
        super().__init__(message)
        self.report = report


def matrix_errors(path: Pathlike) -> list[tuple[str, float]]:
    """Return how badly 8 bits hold each constant matrix of an ONNX file.

    Returns:
      (node name, error) of every MatMul with a constant weight, the worst first; the
      error is relative: |W - Q(W)| / |W| with one scale for the whole matrix.
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


def quantize_model(files: ModelFiles, excluded_share: float = 0.0) -> ModelFiles:
    """Write the ``.int8.onnx`` files beside the float32 ones.

    Args:
      files: float32.
      excluded_share: of the encoder's matrices, the worst ones stay in float32.
    Returns:
      the int8 files.
    """
    int8 = files.int8
    ranked = [name for name, _ in matrix_errors(files.encoder)]
    exclude = ranked[: round(excluded_share * len(ranked))]
    quantize_file(files.encoder, int8.encoder, OPERATORS, exclude)
    if files.head == "transducer":
        quantize_file(files.decoder, int8.decoder, DECODER_OPERATORS)
        quantize_file(files.joiner, int8.joiner, OPERATORS)
    return int8


def remove_int8(files: ModelFiles) -> None:
    """Delete the int8 encoder; the rest too unless another encoder uses it."""
    folder = files.encoder.parent
    files.encoder.unlink(missing_ok=True)
    if files.head == "transducer" and not any(folder.glob("encoder*.int8.onnx")):
        files.decoder.unlink(missing_ok=True)
        files.joiner.unlink(missing_ok=True)


def quantize_checked(
    files: ModelFiles,
    wer: Callable[[ModelFiles], float],
    max_loss: float = MAX_WER_LOSS,
) -> Int8Result:
    """Write int8 files that lose at most ``max_loss``, or none.

    Args:
      files: float32.
      wer: decodes a check set with the files and returns its WER in percent.
      max_loss: percent absolute.
    Raises:
      Int8Refused: with the figures; the int8 files are removed.
    """
    wer_float = wer(files)
    total = len(matrix_errors(files.encoder))
    reports = []
    for share in EXCLUDED_SHARES:
        int8 = quantize_model(files, share)
        report = Int8Result(wer_float, wer(int8), max_loss, round(share * total))
        kept = f", {report.float_nodes} of {total} matrices in float32" if share else ""
        logging.info(
            f"{int8.encoder.name}: WER {report.wer_int8:.2f} %, float32 "
            f"{wer_float:.2f} %, loss {report.loss:+.2f}{kept}"
        )
        if report.accepted:
            return report
        reports.append(report)
    remove_int8(int8)
    best = min(reports, key=lambda r: r.loss)
    raise Int8Refused(
        f"{int8.encoder.name}: WER {best.wer_int8:.2f} %, float32 "
        f"{best.wer_float:.2f} %, a loss of {best.loss:.2f} absolute where "
        f"{best.max_loss:.2f} is allowed; the int8 files are removed, use the "
        "float32 ones",
        best,
    )


def quantize_file(
    source: Pathlike,
    target: Pathlike,
    op_types: Sequence[str],
    exclude: Sequence[str] = (),
) -> None:
    """Write ``source`` with the weights of these operators as 8-bit integers.

    Activations are quantised at run time; metadata are kept.

    Args:
      op_types: ONNX operators to quantise, e.g. ``["MatMul"]``.
      exclude: names of nodes to leave as they are.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it logs a line for each float32 node to root
    try:
        with write_atomically(target) as aside:
            quantize_dynamic(
                model_input=str(source),
                model_output=str(aside),
                op_types_to_quantize=list(op_types),
                nodes_to_exclude=list(exclude),
                weight_type=QuantType.QInt8,
            )
    finally:
        logging.disable(before)
