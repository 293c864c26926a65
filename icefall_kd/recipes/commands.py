"""Build the commands that train, decode and export the systems of a recipe.

``local/train.sh``, ``decode.sh`` and ``export.sh`` print or run them.
"""

import itertools
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from icefall_kd.recipes.systems import Profile, Schedule, System, parse_system

# Variant of a student -> the ways to decode it.
DECODINGS = {
    "unified": ("full", "streaming"),
    "non_streaming": ("full",),
    "streaming": ("streaming",),
}
# Head -> (greedy search, beam search).
METHODS = {
    "transducer": ("greedy_search", "modified_beam_search"),
    "ctc": ("ctc_greedy_search", "ctc_prefix_beam_search"),
}


@dataclass(frozen=True)
class Command:
    """One command of a recipe.

    Attributes:
      system_dir: folder of the system, ``exp/<profile>/<variant>/<system>``.
      output: what the command writes: a folder, a file, or a marker file.
      words: the command and its arguments.
    """

    system_dir: str
    output: str
    words: Sequence[str]

    def __str__(self) -> str:
        return shlex.join(self.words)


@dataclass(frozen=True)
class RecipeCommands:
    """The commands of all systems of a call.

    Attributes:
      profile: profile of the recipe.
      variants, systems: names.
      exp: folder of the runs.
      options: option of the scripts -> its text, empty for the default.
      further: options of every training or decoding.
    """

    profile: Profile
    variants: Sequence[str]
    systems: Sequence[str]
    exp: str
    options: dict[str, str]
    further: Sequence[str] = ()

    def train(self) -> Iterator[Command]:
        """Yield the trainings and averagings of all systems in their order.

        A pre-training that several systems share occurs once for each of them.
        """
        first, last = int(self.options["stage"]), int(self.options["stop_stage"])
        for variant, name in itertools.product(self.variants, self.systems):
            system = parse_system(name)
            if first <= 1 <= last and system.is_pretrained:
                yield from self._pretrain(variant, system)
            if first <= 2 <= last:
                yield from self._finetune(variant, system)

    def align(self) -> Iterator[Command]:
        """Yield the forced alignments of all sets.

        By default the last system of the profile aligns, so that delays of different
        calls compare.  When it is not trained, the last system of this call aligns.
        """
        profile = self.profile
        aligner = self._checkpoint(profile.variants[0], profile.systems[-1])
        if not Path(aligner).is_file():
            aligner = self._checkpoint(self.variants[0], self.systems[-1])
        for name in self._sets():
            words = ["python", "-m", "icefall_kd.bin.align", "--checkpoint"]
            words += [self.options["aligner"] or aligner]
            words += ["--shar-dir", f"data/shar/{name}"]
            words += ["--output", self._alignment(name)]
            yield Command(self.exp, self._alignment(name), words)

    def decode(self) -> Iterator[Command]:
        """Yield the decodings of all sets with PyTorch, one for each chunk size."""
        method = METHODS[self.options["head"]][self.options["search"] == "beam"]
        sizes = self.options["chunk_size"].split() or [""]
        for variant, system in itertools.product(self.variants, self.systems):
            folder = f"{self.exp}/{variant}/{system}"
            for name, decoding in itertools.product(self._sets(), DECODINGS[variant]):
                for size in sizes if decoding == "streaming" else [""]:
                    words = ["python", "-m", "icefall_kd.bin.decode"]
                    words += ["--method", method, "--shar-dir", f"data/shar/{name}"]
                    words += ["--checkpoint", self._checkpoint(variant, system)]
                    words += ["--out-dir", f"{folder}/decode"]
                    words += self._chunks(decoding, size)
                    words += ["--alignment", self._alignment(name)]
                    words += ["--blank-penalty", self.options["blank_penalty"]]
                    yield Command(folder, f"{folder}/decode", [*words, *self.further])

    def export(self) -> Iterator[Command]:
        """Yield the exports; the output is a marker file for each decoding."""
        head, size = self.options["head"], self.options["chunk_size"]
        for variant, system in itertools.product(self.variants, self.systems):
            folder = f"{self.exp}/{variant}/{system}"
            for decoding in DECODINGS[variant]:
                words = ["python", "-m", "icefall_kd.bin.export", "--head", head]
                words += ["--checkpoint", self._checkpoint(variant, system)]
                words += ["--out-dir", f"{folder}/export", "--check", "--check-shar"]
                words += [f"data/shar/{name}" for name in self.profile.check_sets]
                words += self._chunks(decoding, size)
                marker = decoding if head == "transducer" else f"{head}-{decoding}"
                if decoding == "streaming":
                    left = self.options["left_context"]
                    marker += f"-{size or 'own'}-{left or 'own'}"
                yield Command(folder, f"{folder}/export/.{marker}.done", words)

    def transcribe(self) -> Iterator[Command]:
        """Yield the decodings of all sets with sherpa-onnx."""
        method = METHODS[self.options["head"]][0]
        for variant, system in itertools.product(self.variants, self.systems):
            folder = f"{self.exp}/{variant}/{system}"
            for decoding, name in itertools.product(DECODINGS[variant], self._sets()):
                words = ["python", "-m", "icefall_kd.bin.transcribe"]
                words += ["--model-dir", f"{folder}/export"]
                words += ["--shar-dir", f"data/shar/{name}"]
                words += ["--out-dir", f"{folder}/sherpa", "--method", method]
                words += ["--blank-penalty", self.options["blank_penalty"]]
                words += ["--threads", "1"]
                words += self._chunks(decoding, self.options["chunk_size"])
                if Path(self._alignment(name)).is_file():
                    words += ["--alignment", self._alignment(name)]
                yield Command(folder, f"{folder}/sherpa", words)

    def _pretrain(self, variant: str, system: System) -> Iterator[Command]:
        profile, schedule = self.profile, self.profile.pretrain
        first = parse_system(system.pretraining)
        words = ["--config", "conf/pretrain.yaml"]
        words += ["--config", f"conf/{profile.name}/pretrain.yaml"]
        words += ["--data.train", _list(profile.pretrain_sets(system))]
        words += ["--terms.embedding.teachers"]
        words += [json.dumps(profile.teacher_weights(system))]
        words += ["--terms.embedding.choose", "random" if system.is_random else "all"]
        if schedule.lr_epochs:
            words += ["--optim.lr-epochs", str(first.select(schedule.lr_epochs))]
        folder = f"{self.exp}/{variant}/{first.name}/pretrain"
        return self._stage(variant, system, folder, schedule, first, words)

    def _finetune(self, variant: str, system: System) -> Iterator[Command]:
        profile = self.profile
        confs = ["conf/finetune.yaml", f"conf/{profile.name}/finetune.yaml"]
        confs += [f"conf/kd/{part}.yaml" for part in system.parts]
        if system.start == "student":
            confs += ["conf/from_student.yaml"]
        words = [word for conf in confs for word in ("--config", conf)]
        words += ["--data.train", _list(profile.finetune_sets(system))]
        if system.is_pretrained:
            folder = f"{self.exp}/{variant}/{system.pretraining}/pretrain"
            words += ["--init-encoder", f"{folder}/pretrained.pt"]
        folder = f"{self.exp}/{variant}/{system.name}/finetune"
        return self._stage(variant, system, folder, profile.finetune, system, words)

    def _stage(
        self,
        variant: str,
        system: System,
        folder: str,
        schedule: Schedule,
        trained: System,
        words: Sequence[str],
    ) -> Iterator[Command]:
        """Yield the training of a stage and the averaging of its epochs."""
        options, system_dir = self.options, f"{self.exp}/{variant}/{system.name}"
        train = ["python", "-m"]
        if int(options["num_processes"]) > 1:
            train += ["torch.distributed.run", "--standalone"]
            train += ["--nproc_per_node", options["num_processes"], "-m"]
        train += ["icefall_kd.bin.train", "--exp-dir", folder]
        train += ["--config", options["student"], "--config", f"conf/{variant}.yaml"]
        epochs = options["epochs"] or str(trained.select(schedule.epochs))
        seed = options["seed"] if system.seed is None else str(system.seed)
        train += [*words, "--num-epochs", epochs, "--seed", seed, *self.further]
        yield Command(system_dir, folder, train)
        average = ["python", "-m", "icefall_kd.bin.average", "--exp-dir", folder]
        average += ["--avg", options["avg"] or str(schedule.avg)]
        yield Command(system_dir, folder, average)

    def _checkpoint(self, variant: str, system: str) -> str:
        return f"{self.exp}/{variant}/{system}/finetune/pretrained.pt"

    def _sets(self) -> Sequence[str]:
        return self.options["sets"].split() or self.profile.test_sets

    def _alignment(self, set_name: str) -> str:
        return f"{self.exp}/alignment/{set_name}.ctm"

    def _chunks(self, decoding: str, size: str) -> list[str]:
        if decoding == "full":
            return []
        left = self.options["left_context"]
        words = ["--streaming"] + (["--chunk-size", size] if size else [])
        return words + (["--left-context", left] if left else [])


def _list(names: Sequence[str]) -> str:
    return f"[{', '.join(names)}]"
