"""Export a checkpoint for sherpa-onnx, and check the files on a set of cuts."""

import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Optional

import torch
from lhotse.cut import Cut
from torch import Tensor
from tqdm import tqdm

from icefall_kd.core.files import (
    Pathlike,
    read_json,
    sha256_file,
    write_atomically,
    write_json,
)
from icefall_kd.data.cuts import load_wave
from icefall_kd.data.tokens import write_lang
from icefall_kd.decoding import GREEDY_METHODS, DecodeOptions
from icefall_kd.decoding.hlg import read_graph
from icefall_kd.decoding.streaming import pad_tail, tail_padding
from icefall_kd.export.compare import Comparison, compare_engines
from icefall_kd.export.files import INFO, ModelFiles, list_exported_files
from icefall_kd.export.onnx import export_model
from icefall_kd.export.ort import open_model
from icefall_kd.export.quantize import (
    MAX_WER_LOSS,
    Int8Refused,
    Int8Result,
    quantize_checked,
)
from icefall_kd.export.sherpa import sherpa_features
from icefall_kd.recognition.options import Chunking, training_info
from icefall_kd.recognition.recognise import load_recogniser, reference_words
from icefall_kd.recognition.scoring import Recognition, count_errors
from icefall_kd.transducer.checkpoint import count_parameters


class EngineMismatch(ValueError):
    """Exported files and the PyTorch model return different tokens."""


class Exporter:
    """Export one checkpoint to one folder, check the files and quantise them."""

    def __init__(
        self,
        checkpoint: Pathlike,
        folder: Pathlike,
        head: str = "transducer",
        graph: Optional[Pathlike] = None,
    ):
        """Load the checkpoint.

        Args:
          checkpoint: file of bin.average or of a run.
          folder: export folder; created by :meth:`write`.
          head: "transducer" or "ctc".
          graph: graph of words to copy into the folder, only for the CTC head.
        Raises:
          FileNotFoundError: if the checkpoint or the graph does not exist.
          ValueError: if the checkpoint is damaged, has no tokenizer or a tokenizer of
            another vocabulary, its head is missing or untrained, or the graph has other
            tokens.
        """
        self.folder = Path(folder)
        self.head = head
        self.model, self.tokenizer, info = load_recogniser(checkpoint, head)
        if self.tokenizer.vocab_size != self.model.vocab_size:
            raise ValueError(
                f"{checkpoint}: the model has {self.model.vocab_size} tokens, its BPE "
                f"model {self.tokenizer.vocab_size}; train with a matching bpe.model"
            )
        if graph and head != "ctc":
            raise ValueError(f"--graph {graph}: only with --head ctc")
        self.graph = read_graph(graph, self.tokenizer) if graph else None
        self.options = DecodeOptions(GREEDY_METHODS[head], unk_id=self.tokenizer.unk_id)
        self.info = {
            "checkpoint": str(checkpoint),
            "checkpoint_sha256": sha256_file(checkpoint),
            "training": training_info(info),
            "files": {},
            "encoders": {},
        }

    def write(self, chunking: Optional[Chunking]) -> ModelFiles:
        """Write the float32 files, the tokens and :data:`INFO`.

        If the folder has the export of another checkpoint, its files and entries are
        removed, because its encoders do not fit the new joiner.

        Args:
          chunking: chunks of a streaming encoder; None for full context.
        """
        path = self.folder / INFO
        old = read_json(path) if path.exists() else {}
        if old.get("checkpoint_sha256") == self.info["checkpoint_sha256"]:
            old_entries = {name: old.get(name, {}) for name in ("files", "encoders")}
            self.info = {**old, **self.info, **old_entries}
        elif old:
            logging.warning(
                "%s: replace the export of another checkpoint, %s",
                self.folder,
                old.get("checkpoint"),
            )
        files = export_model(
            self.model, self.folder, [chunking], self.head, self.options.unk_id
        )[0]
        if not self.info["encoders"]:
            for path in list_exported_files(self.folder):
                if path not in files.onnx:
                    path.unlink()
                    logging.warning("removed %s of another checkpoint", path)
        write_lang(self.tokenizer.model_bytes, self.folder)
        if self.graph:
            with write_atomically(files.graph) as temporary:
                shutil.copyfile(self.graph.path, temporary)
        entry = {
            "parameters": count_parameters(self.model, self.head),
            "tail_padding": tail_padding(chunking.chunk_size) if chunking else 0.0,  # s
        }
        self.info["encoders"].get(files.encoder.name, {}).pop("check", None)
        self._update_info(files, entry, written=files)
        return files

    def check(self, files: ModelFiles, cuts: Iterable[Cut]) -> Comparison:
        """Compare PyTorch, ONNX Runtime and sherpa-onnx on ``cuts``.

        Args:
          files: float32 files that :meth:`write` returned.
          cuts: 16 kHz mono.
        Raises:
          FileNotFoundError: if a file is missing.
          ValueError: if a file was changed or belongs to another checkpoint.
          EngineMismatch: if the tokens of a cut differ, except for ties and explained
            flips; the message lists these cuts.
        """
        self._load_info(files)
        waves = {cut.id: load_wave(cut).numpy() for cut in cuts}
        result = compare_engines(self.model, files, waves, self.options)
        self._update_info(files, {"check": result.as_dict()})
        if not result.ok:
            raise EngineMismatch(f"{files.encoder}: " + "\n".join(result.lines()))
        return result

    def quantize(
        self, files: ModelFiles, cuts: Sequence[Cut], max_loss: float = MAX_WER_LOSS
    ) -> Int8Result:
        """Write 8-bit files if their WER on ``cuts`` is at most ``max_loss`` higher.

        Cuts without text are skipped.  If no cut has text, the float32 hypotheses are
        the references; the WER then counts the words that int8 changes.

        Args:
          files: float32 files that :meth:`write` returned.
          cuts: 16 kHz mono.
          max_loss: maximum increase of the WER, in percent absolute.
        Raises:
          FileNotFoundError: if a file is missing.
          ValueError: if a file was changed or belongs to another checkpoint.
          Int8Refused: if the WER increases more, or if no cut has text and float32
            recognises no word.
        """
        self._load_info(files)
        references = {cut.id: reference_words(cut) for cut in cuts if has_text(cut)}
        is_labelled = any(references.values())
        if is_labelled:
            unlabelled = len(cuts) - len(references)
            cuts = [cut for cut in cuts if cut.id in references]
            if unlabelled:
                logging.warning(
                    "int8: %d cuts have no text and are skipped", unlabelled
                )
        features = compute_sherpa_fbank(files, cuts)
        float_words = self._recognise(files, features)
        if not is_labelled:
            logging.warning(
                "int8: no cut has text; the float32 hypotheses are the references"
            )
            references = float_words

        def compute_wer(candidate: ModelFiles) -> float:
            words = float_words
            if candidate != files:
                words = self._recognise(candidate, features)
            pairs = [Recognition(i, references[i], words[i]) for i in words]
            return count_errors(pairs).wer

        try:
            if not any(references.values()):
                raise Int8Refused(
                    f"{files.encoder.name}: float32 recognises no word in {len(cuts)} "
                    "cuts without text, so int8 cannot be compared; choose cuts with "
                    "speech in --check-shar, or use --no-int8"
                )
            result = quantize_checked(files, compute_wer, max_loss)
        except Int8Refused as e:
            entry = {"int8": e.result and e.result.as_dict()}
            self._update_info(files, entry, written=files.int8)
            raise
        kind = "text" if is_labelled else "float32 hypotheses"
        entry = {"int8": {**result.as_dict(), "references": kind}}
        self._update_info(files, entry, written=files.int8)
        return result

    def _recognise(
        self, files: ModelFiles, features: dict[str, Tensor]
    ) -> dict[str, list[str]]:
        """Return cut id -> words that ONNX Runtime recognises."""
        engine = open_model(files, self.options, torch.get_num_threads())
        return {
            cut_id: self.tokenizer.decode(engine.decode(x).tokens).split()
            for cut_id, x in tqdm(features.items(), desc=files.encoder.name, unit="cut")
        }

    def _load_info(self, files: ModelFiles) -> None:
        """Read :data:`INFO`; raise ValueError if it describes another checkpoint."""
        info = files.read_info()
        if info["checkpoint_sha256"] != self.info["checkpoint_sha256"]:
            raise ValueError(
                f"{self.folder}: export of {info['checkpoint']}, not of "
                f"{self.info['checkpoint']}; export this checkpoint to another folder"
            )
        self.info = info

    def _update_info(
        self, files: ModelFiles, entry: dict, written: Optional[ModelFiles] = None
    ) -> None:
        """Write an encoder's entries and the hashes of ``written`` to :data:`INFO`.

        Hashes of files that no longer exist are removed.
        """
        self.info["encoders"].setdefault(files.encoder.name, {}).update(entry)
        if written:
            digests = {**self.info["files"], **written.digests}
            self.info["files"] = {
                name: digest
                for name, digest in digests.items()
                if (self.folder / name).is_file()
            }
        write_json(self.folder / INFO, self.info)


def has_text(cut: Cut) -> bool:
    """Return whether a cut has a transcript; it may be the empty text of silence."""
    return any(s.text is not None for s in cut.supervisions)


def compute_sherpa_fbank(files: ModelFiles, cuts: Iterable[Cut]) -> dict[str, Tensor]:
    """Return cut id -> fbank (F, 80) of sherpa-onnx; streaming adds tail padding."""
    features = {}
    for cut in cuts:
        wave = load_wave(cut)
        if files.chunking:
            wave = pad_tail(wave, files.chunking.chunk_size)
        features[cut.id] = sherpa_features(wave.numpy())
    return features
