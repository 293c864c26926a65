"""Build the commands that train, decode and export the systems of a recipe.

For example, the system ``both+one_best`` is trained by four commands (shortened)::

    bin.train --exp-dir exp/quick/unified/both/pretrain --config conf/pretrain.yaml ...
    bin.average --exp-dir exp/quick/unified/both/pretrain --avg 1
    bin.train --exp-dir exp/quick/unified/both+one_best/finetune \\
      --config conf/finetune.yaml --config conf/kd/one_best.yaml \\
      --init-encoder exp/quick/unified/both/pretrain/pretrained.pt ...
    bin.average --exp-dir exp/quick/unified/both+one_best/finetune --avg 3
"""

import itertools
import json
import shlex
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from icefall_kd.recipes.systems import Profile, System, parse_system

# Variant of a student -> the ways to decode it.
DECODINGS = {
    "unified": ("full", "streaming"),
    "non_streaming": ("full",),
    "streaming": ("streaming",),
}
# Head -> search -> method of bin.decode.
METHODS = {
    "transducer": {"greedy": "greedy_search", "beam": "modified_beam_search"},
    "ctc": {"greedy": "ctc_greedy_search", "beam": "ctc_prefix_beam_search"},
}
HLG_METHOD = "ctc_hlg"  # in place of the beam search, if the profile has a graph
CHECKPOINT = "finetune/pretrained.pt"  # in the folder of a system


@dataclass(frozen=True)
class Command:
    """One command of a recipe.

    Attributes:
      system_dir: folder of the system, ``exp/<profile>/<variant>/<system>``; for
        alignments ``exp/<profile>``.
      output: path that the command writes: a folder, a file, or a marker file.
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
      variants: names of the students' variants.
      systems: names of the systems.
      exp: folder of the runs.
      args: options of :mod:`icefall_kd.bin.recipe_commands`, as texts; an empty text
        is the default.  ``args.further`` is appended to every training and decoding.
    """

    profile: Profile
    variants: Sequence[str]
    systems: Sequence[str]
    exp: str
    args: Namespace

    def train(self) -> Iterator[Command]:
        """Yield the trainings and averagings of all systems in their order.

        A pre-training that several systems share occurs once for each of them.
        """
        first, last = int(self.args.stage), int(self.args.stop_stage)
        for variant, name, system_dir in self._runs():
            system = parse_system(name)
            if first <= 1 <= last and system.is_pretrained:
                encoder = parse_system(system.pretraining)
                yield from self._train_stage("pretrain", variant, encoder, system_dir)
            if first <= 2 <= last:
                yield from self._train_stage("finetune", variant, system, system_dir)

    def align(self) -> Iterator[Command]:
        """Yield the forced alignments of all sets.

        By default the last system of the profile aligns, so that the delays of
        different calls are comparable.  If it is not trained, the last system of this
        call aligns.
        """
        variant, system = self.profile.variants[0], self.profile.systems[-1]
        aligner = f"{self.exp}/{variant}/{system}/{CHECKPOINT}"
        if not Path(aligner).is_file():
            aligner = f"{self.exp}/{self.variants[0]}/{self.systems[-1]}/{CHECKPOINT}"
        for name in self._sets():
            words = ["python", "-m", "icefall_kd.bin.align", "--checkpoint"]
            words += [self.args.aligner or aligner]
            words += ["--shar-dir", f"data/shar/{name}"]
            words += ["--output", self._alignment(name)]
            yield Command(self.exp, self._alignment(name), words)

    def graph(self) -> Iterator[Command]:
        """Yield the command that compiles the graph of words, if there is one.

        It is the same for all systems, with the pseudo-labels or without.
        """
        if not self._graph:
            return
        profile = self.profile
        pseudo = [s for s in profile.pseudo_labelled if Path("data/shar", s).is_dir()]
        words = ["python", "-m", "icefall_kd.bin.compile_hlg", "--output", self._graph]
        words += ["--text", *_shar_dirs([*profile.labelled, *pseudo])]
        words += ["--held-out", *_shar_dirs([profile.dev_set, *profile.test_sets])]
        for option, value in profile.hlg.items():
            words += [f"--{option.replace('_', '-')}", str(value)]
        yield Command(self.exp, self._graph, words)

    def decode(self) -> Iterator[Command]:
        """Yield the decodings of all sets with PyTorch, one for each chunk size."""
        method = METHODS[self.args.head][self.args.search]
        search = ["--method", method]
        if self._graph and self.args.search == "beam":
            search = ["--method", HLG_METHOD, "--graph", self._graph]
        sizes = self.args.chunk_size.split() or [""]
        for variant, _, system_dir in self._runs():
            output = f"{system_dir}/decode"
            for name, decoding in itertools.product(self._sets(), DECODINGS[variant]):
                for size in sizes if decoding == "streaming" else [""]:
                    words = ["python", "-m", "icefall_kd.bin.decode"]
                    words += [*search, "--shar-dir", f"data/shar/{name}"]
                    words += ["--checkpoint", f"{system_dir}/{CHECKPOINT}"]
                    words += ["--out-dir", output]
                    words += self._streaming_options(decoding, size)
                    words += ["--alignment", self._alignment(name)]
                    words += ["--blank-penalty", self.args.blank_penalty]
                    yield Command(system_dir, output, [*words, *self.args.further])

    def export(self) -> Iterator[Command]:
        """Yield the exports; the output is a marker file for each decoding."""
        head, size = self.args.head, self.args.chunk_size
        for variant, _, system_dir in self._runs():
            for decoding in DECODINGS[variant]:
                words = ["python", "-m", "icefall_kd.bin.export", "--head", head]
                words += ["--checkpoint", f"{system_dir}/{CHECKPOINT}"]
                words += ["--out-dir", f"{system_dir}/export", "--check"]
                words += ["--check-shar"]
                words += [f"data/shar/{name}" for name in self.profile.check_sets]
                words += ["--graph", self._graph] if self._graph else []
                words += self._streaming_options(decoding, size)
                marker = decoding if head == "transducer" else f"{head}-{decoding}"
                if decoding == "streaming":
                    left = self.args.left_context
                    marker += f"-{size or 'own'}-{left or 'own'}"
                yield Command(system_dir, f"{system_dir}/export/.{marker}.done", words)

    def transcribe(self) -> Iterator[Command]:
        """Yield the decodings of all sets with sherpa-onnx."""
        method = HLG_METHOD if self._graph else METHODS[self.args.head]["greedy"]
        for variant, _, system_dir in self._runs():
            output = f"{system_dir}/sherpa"
            for decoding, name in itertools.product(DECODINGS[variant], self._sets()):
                words = ["python", "-m", "icefall_kd.bin.transcribe"]
                words += ["--model-dir", f"{system_dir}/export"]
                words += ["--shar-dir", f"data/shar/{name}"]
                words += ["--out-dir", output, "--method", method]
                words += ["--blank-penalty", self.args.blank_penalty]
                words += ["--threads", "1"]
                words += self._streaming_options(decoding, self.args.chunk_size)
                if Path(self._alignment(name)).is_file():
                    words += ["--alignment", self._alignment(name)]
                yield Command(system_dir, output, words)

    def _train_stage(
        self, stage: str, variant: str, system: System, system_dir: str
    ) -> Iterator[Command]:
        """Yield the training of a stage and the averaging of its epochs.

        Args:
          stage: "pretrain" or "finetune".
          variant: variant of the student.
          system: for a pre-training without the parts of fine-tuning.
          system_dir: folder of the system that needs this stage.
        """
        args, schedule = self.args, getattr(self.profile, stage)
        folder = f"{self.exp}/{variant}/{system.name}/{stage}"
        train = ["python", "-m"]
        if int(args.num_processes) > 1:
            train += ["torch.distributed.run", "--standalone"]
            train += ["--nproc_per_node", args.num_processes, "-m"]
        train += ["icefall_kd.bin.train", "--exp-dir", folder]
        train += ["--config", args.student, "--config", f"conf/{variant}.yaml"]
        train += ["--config", f"conf/{stage}.yaml"]
        further = f"conf/{self.profile.name}/{stage}.yaml"
        if Path(further).is_file():  # what the profile changes, if anything
            train += ["--config", further]
        if stage == "pretrain":
            train += self._pretrain_options(system)
        else:
            train += self._finetune_options(variant, system)
        train += ["--num-epochs", args.epochs or str(system.select(schedule.epochs))]
        train += ["--seed", args.seed if system.seed is None else str(system.seed)]
        yield Command(system_dir, folder, [*train, *args.further])
        average = ["python", "-m", "icefall_kd.bin.average", "--exp-dir", folder]
        average += ["--avg", args.avg or str(schedule.select_avg(system))]
        yield Command(system_dir, folder, average)

    def _pretrain_options(self, system: System) -> list[str]:
        weights = json.dumps(self.profile.teacher_weights(system))
        words = ["--data.train", _format_list(self.profile.pretrain_sets(system))]
        words += ["--terms.embedding.teachers", weights]
        words += ["--terms.embedding.choose", "random" if system.is_random else "all"]
        if lr_epochs := self.profile.pretrain.lr_epochs:
            words += ["--optim.lr-epochs", str(system.select(lr_epochs))]
        return words

    def _finetune_options(self, variant: str, system: System) -> list[str]:
        words = []
        for part in system.parts:
            words += ["--config", f"conf/kd/{part}.yaml"]
        if system.start == "student":
            words += ["--config", "conf/from_student.yaml"]
        words += ["--data.train", _format_list(self.profile.finetune_sets(system))]
        if system.is_pretrained:
            encoder = f"{self.exp}/{variant}/{system.pretraining}/pretrain"
            words += ["--init-encoder", f"{encoder}/pretrained.pt"]
        return words

    def _runs(self) -> Iterator[tuple[str, str, str]]:
        """Yield the variant, the name of the system and the folder of each run."""
        for variant, system in itertools.product(self.variants, self.systems):
            yield variant, system, f"{self.exp}/{variant}/{system}"

    @property
    def _graph(self) -> str:
        """Path of the graph of words; empty if the profile or the head has none."""
        has_graph = self.profile.hlg and self.args.head == "ctc"
        return f"{self.exp}/HLG.fst" if has_graph else ""

    def _sets(self) -> Sequence[str]:
        return self.args.sets.split() or self.profile.test_sets

    def _alignment(self, set_name: str) -> str:
        return f"{self.exp}/alignment/{set_name}.ctm"

    def _streaming_options(self, decoding: str, chunk_size: str) -> list[str]:
        if decoding == "full":
            return []
        words = ["--streaming"]
        words += ["--chunk-size", chunk_size] if chunk_size else []
        words += ["--left-context", left] if (left := self.args.left_context) else []
        return words


def _shar_dirs(names: Sequence[str]) -> list[str]:
    return [f"data/shar/{name}" for name in names]


def _format_list(names: Sequence[str]) -> str:
    return f"[{', '.join(names)}]"
