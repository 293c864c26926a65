"""From a checkpoint to a folder that sherpa-onnx opens, checked on real cuts."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Optional

import torch
from lhotse.cut import Cut
from torch import Tensor
from tqdm import tqdm

from icefall_kd.core.files import Pathlike, read_json, sha256_file, write_json
from icefall_kd.data.cuts import load_wave
from icefall_kd.decoding import GREEDY_METHODS, DecodeOptions
from icefall_kd.decoding.streaming import pad_tail, tail_padding
from icefall_kd.export.compare import Comparison, compare_engines
from icefall_kd.export.files import INFO, ModelFiles, exported_files
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
from icefall_kd.recognition.recognise import reference_words
from icefall_kd.recognition.scoring import Recognition, count_errors
from icefall_kd.transducer.checkpoint import check_head, count_parameters


class EngineMismatch(ValueError):
    """The exported files do not say what the model says."""


class Exporter:
    """One checkpoint and the folder that its exported files go to."""

    def __init__(
        self, checkpoint: Pathlike, folder: Pathlike, head: str = "transducer"
    ):
        """Load the checkpoint.

        Args:
          head: of the student, "transducer" or "ctc".
        Raises:
          FileNotFoundError: if there is none.
          ValueError: if it carries no tokenizer, or one of another vocabulary, or has
            no trained head of this kind.
        """
        from icefall_kd.transducer.checkpoint import load_model

        self.folder = Path(folder)
        self.head = head
        self.model, self.tokenizer, info = load_model(checkpoint, "cpu")
        if self.tokenizer is None:
            raise ValueError(
                f"{checkpoint}: saw no text in training and has no tokens; export a "
                "fine-tuned model"
            )
        if self.tokenizer.vocab_size != self.model.vocab_size:
            raise ValueError(
                f"{checkpoint}: the model has {self.model.vocab_size} tokens, its BPE "
                f"model {self.tokenizer.vocab_size}; train with the bpe.model it needs"
            )
        check_head(self.model, head, info, str(checkpoint))
        self.options = DecodeOptions(GREEDY_METHODS[head], unk_id=self.tokenizer.unk_id)
        self.info = {
            "checkpoint": str(checkpoint),
            "checkpoint_sha256": sha256_file(checkpoint),
            "training": training_info(info),
            "files": {},
            "encoders": {},
        }

    def write(self, chunking: Optional[Chunking]) -> ModelFiles:
        """Write the float32 files, tokens and :data:`INFO`.

        An export of another checkpoint in the folder is removed, files and entries:
        its encoders would not fit the new joiner.
        """
        from icefall_kd.data.tokens import write_lang

        info = self.folder / INFO
        old = read_json(info) if info.exists() else {}
        if old.get("checkpoint_sha256") == self.info["checkpoint_sha256"]:
            kept = {name: old.get(name, {}) for name in ("files", "encoders")}
            self.info = {**old, **self.info, **kept}
        elif old:
            logging.warning(
                "%s holds an export of another checkpoint, %s: it is replaced",
                self.folder,
                old.get("checkpoint"),
            )
        files = export_model(
            self.model, self.folder, [chunking], self.head, self.options.unk_id
        )[0]
        if not self.info["encoders"]:
            for path in exported_files(self.folder):
                if path in files.onnx:
                    continue
                logging.warning("removed %s, of another checkpoint", path)
                path.unlink()
        write_lang(self.tokenizer.model_bytes, self.folder)
        size = chunking and chunking.chunk_size
        facts = {
            "parameters": count_parameters(self.model, self.head),
            "tail_padding": tail_padding(size) if size else 0.0,  # s
        }
        self.info["encoders"].get(files.encoder.name, {}).pop("check", None)
        self._note(files, facts, written=files)
        return files

    def _note(
        self, files: ModelFiles, facts: dict, written: Optional[ModelFiles] = None
    ) -> None:
        """Add facts about an encoder, and the digests of new files, to :data:`INFO`."""
        entry = self.info["encoders"].setdefault(files.encoder.name, {})
        entry.update(facts)
        if written:
            digests = {**self.info["files"], **written.digests}
            there = {n: d for n, d in digests.items() if (self.folder / n).is_file()}
            self.info["files"] = there
        write_json(self.folder / INFO, self.info)

    def _require_own(self, files: ModelFiles) -> None:
        """Raise an error unless ``files`` are those that this checkpoint gave."""
        info = files.read_info()
        if info["checkpoint_sha256"] != self.info["checkpoint_sha256"]:
            raise ValueError(
                f"{self.folder}: an export of {info['checkpoint']}, not of "
                f"{self.info['checkpoint']}; export this one to a folder of its own"
            )
        self.info = info

    def check(self, files: ModelFiles, cuts: Iterable[Cut]) -> Comparison:
        """Compare PyTorch, ONNX Runtime and sherpa-onnx on ``cuts``.

        Raises:
          ValueError: as :meth:`ModelFiles.read_info`, or the files are of another
            checkpoint.
          EngineMismatch: listing every prompt that differs without a reason.
        """
        self._require_own(files)
        waves = {cut.id: load_wave(cut).numpy() for cut in cuts}
        report = compare_engines(self.model, files, waves, self.options)
        self._note(files, {"check": report.as_dict()})
        if not report.ok:
            raise EngineMismatch(f"{files.encoder}: " + "\n".join(report.lines()))
        return report

    def quantize(
        self, files: ModelFiles, cuts: Sequence[Cut], max_loss: float = MAX_WER_LOSS
    ) -> Int8Result:
        """Write int8 files if they are as good as float32 on ``cuts``.

        Cuts without text are left out.  Where no cut has text, the float32 hypotheses
        are the references: the WER then counts the words that int8 changes, which are
        at least as many as it loses.

        Raises:
          Int8Refused: with the figures, or because float32 recognises no word in cuts
            without text.
        """
        self._require_own(files)
        references = {cut.id: reference_words(cut) for cut in cuts if has_text(cut)}
        labelled = any(references.values())
        if labelled:
            unlabelled = len(cuts) - len(references)
            cuts = [cut for cut in cuts if cut.id in references]
            if unlabelled:
                logging.warning("int8: %d cuts have no text, left out", unlabelled)
        features = fbank_for(files, cuts)
        float_words = self._recognise(files, features)
        if not labelled:
            logging.warning(
                "int8: no cut has text; the float32 hypotheses are the references"
            )
            references = float_words
        try:
            if not any(references.values()):
                raise Int8Refused(
                    f"{files.encoder.name}: float32 recognises no word in {len(cuts)} "
                    "cuts without text, int8 cannot be compared with it; use cuts with "
                    "speech in --check-shar, or --no-int8"
                )

            def wer(candidate: ModelFiles) -> float:
                words = float_words
                if candidate != files:
                    words = self._recognise(candidate, features)
                pairs = [Recognition(i, references[i], words[i]) for i in words]
                return count_errors(pairs).wer

            report = quantize_checked(files, wer, max_loss)
        except Int8Refused as e:
            refused = e.report and e.report.as_dict()
            self._note(files, {"int8": refused}, written=files.int8)
            raise
        reference_kind = "text" if labelled else "float32 hypotheses"
        facts = {**report.as_dict(), "references": reference_kind}
        self._note(files, {"int8": facts}, written=files.int8)
        return report

    def _recognise(
        self, files: ModelFiles, features: dict[str, Tensor]
    ) -> dict[str, list[str]]:
        """Return id -> words of exported files by ONNX Runtime."""
        engine = open_model(files, self.options, torch.get_num_threads())
        return {
            cut_id: self.tokenizer.decode(engine.decode(x).tokens).split()
            for cut_id, x in tqdm(features.items(), desc=files.encoder.name, unit="cut")
        }


def has_text(cut: Cut) -> bool:
    """Return whether a cut has a transcript, which may be empty."""
    return any(s.text is not None for s in cut.supervisions)


def fbank_for(files: ModelFiles, cuts: Iterable[Cut]) -> dict[str, "Tensor"]:
    """Return id -> fbank (F, 80) as sherpa-onnx feeds it, streams with their tail."""
    features = {}
    for cut in cuts:
        wave = load_wave(cut)
        if files.chunking:
            wave = pad_tail(wave, files.chunking.chunk_size)
        features[cut.id] = sherpa_features(wave.numpy())
    return features
