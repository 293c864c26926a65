"""Build the commands that train, decode and export the systems of a recipe.

``local/train.sh``, ``decode.sh`` and ``export.sh`` print or run them.
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from icefall_kd.recipes.systems import (
    DECODINGS,
    Profile,
    Schedule,
    System,
    parse_system,
    select_length,
)

BIN = ("python", "-m")
TORCHRUN = ("python", "-m", "torch.distributed.run", "--standalone")
# Head -> (method of stage 1, method of stage 2) of decode.sh.
METHODS = {
    "transducer": ("greedy_search", "modified_beam_search"),
    "ctc": ("ctc_greedy_search", "ctc_prefix_beam_search"),
}


@dataclass(frozen=True)
class Command:
    """One command of a recipe.

    Attributes:
      system_dir: folder of the system, ``exp/<profile>/<variant>/<system>``.
      output: what the command writes: a folder, or the marker file of a finished step.
      words: the command and its arguments.
    """

    system_dir: str
    output: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


@dataclass(frozen=True)
class Selection:
    """The systems of a call.

    Attributes:
      profile: profile of the recipe.
      variants: variants of the student.
      systems: names of systems.
      exp: folder of the runs.
    """

    profile: Profile
    variants: Sequence[str]
    systems: Sequence[str]
    exp: str

    def folders(self) -> Iterator[tuple[str, str]]:
        """Yield (variant, folder of a system) for every system of every variant."""
        for variant in self.variants:
            for system in self.systems:
                yield variant, f"{self.exp}/{variant}/{system}"


@dataclass(frozen=True)
class TrainOptions:
    """Options of train.sh; an empty text stands for the recipe's value."""

    student: str
    seed: str
    epochs: str = ""
    avg: str = ""
    num_processes: int = 1
    stage: int = 1
    stop_stage: int = 2
    further: Sequence[str] = ()


@dataclass(frozen=True)
class Streaming:
    """Chunks of streaming decoding, in frames of 20 ms; empty: the checkpoint's."""

    chunk_size: str = ""
    left_context: str = ""

    def options(self) -> list[str]:
        """Return the command-line options."""
        words = ["--streaming"]
        if self.chunk_size:
            words += ["--chunk-size", self.chunk_size]
        if self.left_context:
            words += ["--left-context", self.left_context]
        return words


def train_commands(chosen: Selection, options: TrainOptions) -> Iterator[Command]:
    """Yield the trainings and averagings of all systems, in their order.

    A pre-training that several systems share occurs once for each of them.

    Raises:
      ValueError: if a system's name is wrong, or the recipe lacks what it needs.
    """
    for variant, folder in chosen.folders():
        system = parse_system(Path(folder).name)
        if options.stage <= 1 <= options.stop_stage and system.is_pretrained:
            yield from _pretrain(chosen, variant, system, options)
        if options.stage <= 2 <= options.stop_stage:
            yield from _finetune(chosen, variant, system, options)


def _pretrain(
    chosen: Selection, variant: str, system: System, options: TrainOptions
) -> Iterator[Command]:
    profile, name = chosen.profile, system.pretraining
    schedule, first = profile.pretrain, parse_system(name)
    weights = json.dumps(dict(profile.teacher_weights(system)))
    words = [
        *("--config", "conf/pretrain.yaml"),
        *("--config", f"conf/{profile.name}/pretrain.yaml"),
        *("--data.train", _list(profile.pretrain_sets(system))),
        *("--terms.embedding.teachers", weights),
        *("--terms.embedding.choose", "random" if system.is_random else "all"),
        *("--num-epochs", options.epochs or str(select_length(schedule.epochs, first))),
    ]
    if schedule.lr_epochs:
        words += ["--optim.lr-epochs", str(select_length(schedule.lr_epochs, first))]
    run_dir = f"{chosen.exp}/{variant}/{name}/pretrain"
    return _stage(chosen, variant, system, options, run_dir, words, schedule)


def _finetune(
    chosen: Selection, variant: str, system: System, options: TrainOptions
) -> Iterator[Command]:
    profile, exp = chosen.profile, chosen.exp
    words = ["--config", "conf/finetune.yaml"]
    words += ["--config", f"conf/{profile.name}/finetune.yaml"]
    for part in system.parts:
        words += ["--config", f"conf/kd/{part}.yaml"]
    epochs = options.epochs or str(select_length(profile.finetune.epochs, system))
    words += ["--data.train", _list(profile.finetune_sets(system))]
    words += ["--num-epochs", epochs]
    if system.is_pretrained:
        encoder = f"{exp}/{variant}/{system.pretraining}/pretrain/pretrained.pt"
        words += ["--init-encoder", encoder]
    elif system.start == "student":
        words += ["--config", "conf/from_student.yaml"]
    run_dir = f"{exp}/{variant}/{system.name}/finetune"
    return _stage(chosen, variant, system, options, run_dir, words, profile.finetune)


def _stage(
    chosen: Selection,
    variant: str,
    system: System,
    options: TrainOptions,
    run_dir: str,
    words: Sequence[str],
    schedule: Schedule,
) -> Iterator[Command]:
    """Yield the command that trains a stage, and the one that averages its epochs."""
    system_dir = f"{chosen.exp}/{variant}/{system.name}"
    launcher: tuple[str, ...] = BIN
    if options.num_processes > 1:
        launcher = (*TORCHRUN, "--nproc_per_node", str(options.num_processes), "-m")
    seed = options.seed if system.seed is None else str(system.seed)
    shape = ("--config", options.student, "--config", f"conf/{variant}.yaml")
    train = (*launcher, "icefall_kd.bin.train", "--exp-dir", run_dir, *shape, *words)
    train = (*train, "--seed", seed, *options.further)
    yield Command(system_dir, run_dir, train)
    avg = options.avg or str(schedule.avg)
    average = (*BIN, "icefall_kd.bin.average", "--exp-dir", run_dir, "--avg", avg)
    yield Command(system_dir, run_dir, average)


def _list(names: Sequence[str]) -> str:
    return f"[{', '.join(names)}]"


def default_aligner(chosen: Selection) -> str:
    """Return the checkpoint that aligns words when ``--aligner`` names none.

    The last system of the profile aligns, so that delays of different calls compare.
    When it is not trained, the last system of this call aligns.
    """
    profile = chosen.profile
    folder = f"{chosen.exp}/{profile.variants[0]}/{profile.systems[-1]}"
    if not Path(folder, "finetune/pretrained.pt").is_file():
        folder = f"{chosen.exp}/{chosen.variants[0]}/{chosen.systems[-1]}"
    return f"{folder}/finetune/pretrained.pt"


def align_commands(
    chosen: Selection, sets: Sequence[str], aligner: str
) -> Iterator[Command]:
    """Yield the commands that align the words of each set."""
    aligner = aligner or default_aligner(chosen)
    for name in sets:
        output = f"{chosen.exp}/alignment/{name}.ctm"
        words = (*BIN, "icefall_kd.bin.align", "--checkpoint", aligner)
        words = (*words, "--shar-dir", f"data/shar/{name}", "--output", output)
        yield Command(chosen.exp, output, words)


def decode_commands(
    chosen: Selection,
    sets: Sequence[str],
    method: str,
    chunk_sizes: Sequence[str],
    left_context: str,
    further: Sequence[str],
) -> Iterator[Command]:
    """Yield the commands that decode each set with PyTorch.

    Args:
      chosen: systems.
      sets: sets of data/shar.
      method: decoding method.
      chunk_sizes: chunks of streaming decoding, in frames of 20 ms; empty: the
        checkpoint's.
      left_context: left context of streaming decoding, in frames of 20 ms.
      further: options of every command.
    """
    streams = [Streaming(size, left_context) for size in chunk_sizes or [""]]
    for variant, folder in chosen.folders():
        for name in sets:
            for decoding in DECODINGS[variant]:
                is_full = decoding == "full"
                for chunks in [[]] if is_full else [s.options() for s in streams]:
                    words = [*BIN, "icefall_kd.bin.decode", "--method", method]
                    words += ["--shar-dir", f"data/shar/{name}"]
                    words += ["--checkpoint", f"{folder}/finetune/pretrained.pt"]
                    words += ["--out-dir", f"{folder}/decode", *chunks]
                    words += ["--alignment", f"{chosen.exp}/alignment/{name}.ctm"]
                    yield Command(folder, f"{folder}/decode", (*words, *further))


def export_commands(
    chosen: Selection, head: str, streaming: Streaming
) -> Iterator[Command]:
    """Yield the commands that export each system; their output is a marker file."""
    profile = chosen.profile
    for variant, folder in chosen.folders():
        for decoding in DECODINGS[variant]:
            marker = decoding if head == "transducer" else f"{head}-{decoding}"
            words = [*BIN, "icefall_kd.bin.export", "--head", head]
            words += ["--checkpoint", f"{folder}/finetune/pretrained.pt"]
            words += ["--out-dir", f"{folder}/export", "--check", "--check-shar"]
            words += [f"data/shar/{name}" for name in profile.check_sets]
            if decoding == "streaming":
                words += streaming.options()
                chunk, left = streaming.chunk_size, streaming.left_context
                marker += f"-{chunk or 'own'}-{left or 'own'}"
            yield Command(folder, f"{folder}/export/.{marker}.done", tuple(words))


def transcribe_commands(
    chosen: Selection,
    sets: Sequence[str],
    head: str,
    streaming: Streaming,
    blank_penalty: str,
) -> Iterator[Command]:
    """Yield the commands that transcribe each set with sherpa-onnx."""
    for variant, folder in chosen.folders():
        for decoding in DECODINGS[variant]:
            for name in sets:
                words = [*BIN, "icefall_kd.bin.transcribe"]
                words += ["--model-dir", f"{folder}/export"]
                words += ["--shar-dir", f"data/shar/{name}"]
                words += ["--out-dir", f"{folder}/sherpa", "--method", METHODS[head][0]]
                words += ["--blank-penalty", blank_penalty, "--threads", "1"]
                if decoding == "streaming":
                    words += streaming.options()
                alignment = f"{chosen.exp}/alignment/{name}.ctm"
                if Path(alignment).is_file():
                    words += ["--alignment", alignment]
                yield Command(folder, f"{folder}/sherpa", tuple(words))
