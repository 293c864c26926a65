"""From a checkpoint to a folder that sherpa-onnx opens, checked on real cuts."""

import logging
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sequence

import torch
from lhotse.cut import Cut
from torch import Tensor
from tqdm import tqdm

from icefall_kd.data.waves import load_wave
from icefall_kd.decoding import GREEDY, DecodeOptions
from icefall_kd.decoding.heads import count_parameters, require_head
from icefall_kd.decoding.recognise import reference
from icefall_kd.decoding.scoring import Recognition, score
from icefall_kd.decoding.setting import Chunking, training_facts
from icefall_kd.decoding.streaming import pad_tail
from icefall_kd.export.check import Report, compare
from icefall_kd.export.files import INFO, ModelFiles
from icefall_kd.export.onnx import export_model
from icefall_kd.export.ort import open_model
from icefall_kd.export.quantize import MAX_WER_LOSS, Int8Report, quantize_checked
from icefall_kd.export.sherpa import sherpa_features
from icefall_kd.io import Pathlike, read_json, sha256_file, write_json


class EnginesDisagree(ValueError):
    """The exported files do not say what the model says."""


class Conversion:
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
        from icefall_kd.training.checkpoint import load_model

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
        require_head(self.model, head, info, str(checkpoint))
        self.options = DecodeOptions(GREEDY[head], unk_id=self.tokenizer.unk_id)
        self.info = {
            "checkpoint": str(checkpoint),
            "checkpoint_sha256": sha256_file(checkpoint),
            "training": training_facts(info),
            "encoders": {},
        }

    def write(self, chunking: Optional[Chunking]) -> ModelFiles:
        """Write the float32 files, tokens and :data:`INFO`.

        Files of another checkpoint in the folder are removed first: their encoders
        would not fit the new joiner.
        """
        from icefall_kd.data.tokens import write_lang

        info = self.folder / INFO
        old = read_json(info) if info.exists() else {}
        if old.get("checkpoint_sha256") == self.info["checkpoint_sha256"]:
            self.info = {**old, **self.info, "encoders": old["encoders"]}
        files = export_model(
            self.model, self.folder, [chunking], self.head, self.options.unk_id
        )[0]
        if not self.info["encoders"]:
            keep = {path.name for path in files.onnx}
            for path in self.folder.glob("*.onnx"):
                if path.name not in keep:
                    logging.info("removed %s, of another checkpoint", path)
                    path.unlink()
        write_lang(self.tokenizer.model_bytes, self.folder)
        self._note(files, {"parameters": count_parameters(self.model, self.head)})
        return files

    def _note(self, files: ModelFiles, facts: dict) -> None:
        """Add facts about an encoder to :data:`INFO`."""
        entry = self.info["encoders"].setdefault(files.encoder.name, {})
        entry.update(facts)
        write_json(self.folder / INFO, self.info)

    def check(self, files: ModelFiles, cuts: Iterable[Cut]) -> Report:
        """See that PyTorch, ONNX Runtime and sherpa-onnx agree on ``cuts``.

        Raises:
          EnginesDisagree: listing every prompt that differs without a reason.
        """
        waves = {cut.id: load_wave(cut).numpy() for cut in cuts}
        report = compare(self.model, files, waves, self.options)
        self._note(files, {"check": report.as_dict()})
        if not report.ok:
            lines = "\n".join(report.lines())
            raise EnginesDisagree(f"{files.encoder}: the engines disagree\n{lines}")
        return report

    def quantize(
        self, files: ModelFiles, cuts: Sequence[Cut], max_loss: float = MAX_WER_LOSS
    ) -> Int8Report:
        """Write int8 files if they are as good as float32 on ``cuts``.

        Raises:
          Int8Refused: with the figures.
        """
        features = fbank_for(files, cuts)
        references = {cut.id: reference(cut) for cut in cuts}

        def wer(candidate: ModelFiles) -> float:
            return self._wer(candidate, features, references)

        report = quantize_checked(files, wer, max_loss)
        self._note(files, {"int8": report.as_dict()})
        return report

    def _wer(
        self,
        files: ModelFiles,
        features: Dict[str, Tensor],
        references: Dict[str, List[str]],
    ) -> float:
        """Return the WER in percent of exported files by ONNX Runtime."""
        engine = open_model(files, self.options, torch.get_num_threads())
        recognitions = []
        for cut_id, x in tqdm(features.items(), desc=files.encoder.name, unit="cut"):
            words = self.tokenizer.decode(engine.decode(x).tokens).split()
            recognitions.append(Recognition(cut_id, references[cut_id], words))
        return score(recognitions).wer


def fbank_for(files: ModelFiles, cuts: Iterable[Cut]) -> Dict[str, "Tensor"]:
    """Return id -> fbank (F, 80) as sherpa-onnx feeds it, streams with their tail."""
    features = {}
    for cut in cuts:
        wave = load_wave(cut)
        if files.chunking:
            wave = pad_tail(wave, files.chunking.chunk_size)
        features[cut.id] = sherpa_features(wave.numpy())
    return features
