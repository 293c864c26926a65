"""Small sets of noise with transcripts and two teachers' fields, and a tiny student."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from dummies import noise_cuts
from training_runs import change

from icefall_kd.core.config import ModelConfig, ZipformerConfig
from icefall_kd.core.frames import make_pad_mask
from icefall_kd.data.shar import write_shar
from icefall_kd.data.tokens import train_bpe, write_lang
from icefall_kd.distill import TermsConfig
from icefall_kd.distill.embedding import EmbeddingConfig
from icefall_kd.distill.transducer import CtcConfig, TransducerConfig
from icefall_kd.fields.extract import extract
from icefall_kd.teachers.base import Output, Teacher, TeacherOutput
from icefall_kd.training.checkpoint import write_average
from icefall_kd.training.config import DataConfig, OptimConfig, TrainConfig
from icefall_kd.training.run import train

WORDS = "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN".split()
VOCAB_SIZE = 24
DURATIONS = [0.9 + 0.1 * i for i in range(12)]  # s

STUDENT = ModelConfig(
    encoder=ZipformerConfig(
        frontend_channels=(4, 4, 128),
        convnext_expansion=1,
        downsampling_factor=(1, 2),
        num_encoder_layers=(1, 1),
        encoder_dim=(16, 24),
        encoder_unmasked_dim=(16, 16),
        feedforward_dim=(16, 24),
        num_heads=(2, 2),
        query_head_dim=(4,),
        value_head_dim=(4,),
        pos_dim=8,
        cnn_module_kernel=(7, 7),
        causal=True,
        chunk_size=(16, -1),
        left_context_frames=(32,),
        warmup_hours=0.04,  # 50 updates of 3 s
    ),
    vocab_size=VOCAB_SIZE,
    decoder_dim=16,
    joiner_dim=16,
)


class EnergyTeacher(Teacher):
    """Returns log(1 + |x|) of a random projection x of the samples every 20 ms."""

    def __init__(self, name: str, dim: int) -> None:
        self.name = name
        fingerprint = {"teacher": name, "dim": dim}
        self.outputs = {name: Output("embedding", dim, 0.02, fingerprint)}
        generator = torch.Generator().manual_seed(dim)
        self.mix = torch.randn(320, dim, generator=generator)

    def forward(self, waves, wave_lens):
        lens = (wave_lens // 320).clamp(min=1)
        frames = waves[:, : int(lens.max()) * 320].unflatten(1, (-1, 320))
        x = (frames @ self.mix).abs().log1p()
        x = x * ~make_pad_mask(lens).unsqueeze(-1)
        return {self.name: TeacherOutput(x, lens)}


def sentence(i: int) -> str:
    return " ".join(WORDS[(i + k) % len(WORDS)] for k in range(1 + i % 3))


@pytest.fixture(scope="session")
def energy_teachers():
    """Return two teachers, whose fields are teacher_a and teacher_b."""
    return [EnergyTeacher("teacher_a", 6), EnergyTeacher("teacher_b", 3)]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, energy_teachers) -> Path:
    """Return a folder with shar/{train,dev,unlabelled} and lang/bpe.model.

    train has 12 cuts, dev 4; the 6 cuts of unlabelled have no transcript.
    """
    root = tmp_path_factory.mktemp("training")
    texts = [sentence(i) for i in range(len(DURATIONS))]
    for name, count, seed in (("train", 12, 5), ("dev", 4, 3), ("unlabelled", 6, 4)):
        audio = root / f"audio-{name}"
        audio.mkdir()
        given = None if name == "unlabelled" else texts[:count]
        cuts = noise_cuts(audio, DURATIONS[:count], given, seed=seed)
        cuts = cuts.modify_ids(lambda i, name=name: f"{name}-{i}")
        write_shar(cuts, root / "shar" / name, shard_size=5)
        extract(root / "shar" / name, energy_teachers)
    write_lang(train_bpe(texts * 20, VOCAB_SIZE), root / "lang")
    return root


@pytest.fixture(scope="session")
def session_config(data_dir, tmp_path_factory) -> TrainConfig:
    """Return two epochs of the tiny student with three terms."""
    return TrainConfig(
        exp_dir=str(tmp_path_factory.mktemp("session") / "exp"),
        model=STUDENT,
        data=DataConfig(
            shar_dir=str(data_dir / "shar"),
            bpe_model=str(data_dir / "lang/bpe.model"),
            max_duration=5.0,
            num_buckets=2,
        ),
        terms=TermsConfig(
            embedding=EmbeddingConfig(
                teachers={"teacher_a": 0.5, "teacher_b": 0.5},
                losses={"l1": 1.0, "cosine": 1.0},
            ),
            transducer=TransducerConfig(warm_steps=10),
            ctc=CtcConfig(),
        ),
        optim=OptimConfig(warmup_batches=5.0),
        num_epochs=2,
        average_period=2,
        log_interval=1,
        memory_probe=False,
        tensorboard=False,
        num_threads=1,
    )


@pytest.fixture
def config(session_config, tmp_path) -> TrainConfig:
    """Return the session's configuration with a folder of this test."""
    return dataclasses.replace(session_config, exp_dir=str(tmp_path / "exp"))


@pytest.fixture(scope="session")
def session_run(session_config) -> Path:
    """Return the folder of a finished run of one epoch, to be copied."""
    config = dataclasses.replace(session_config, num_epochs=1)
    train(config)
    return Path(config.exp_dir)


@pytest.fixture
def finished(config, session_run) -> TrainConfig:
    """Return the configuration of a finished run of one epoch."""
    shutil.copytree(session_run, config.exp_dir)
    return dataclasses.replace(config, num_epochs=1)


@pytest.fixture
def pretrained(finished, tmp_path) -> Path:
    """Return the averaged student of :func:`finished`."""
    path = tmp_path / "pretrained.pt"
    write_average(finished.exp_dir, 1, 1, path)
    return path


@pytest.fixture
def new_run(config, pretrained, tmp_path):
    """Return a run of one epoch in an empty folder; ``pretrained`` exists."""
    return change(config, num_epochs=1, exp_dir=str(tmp_path / "new"))


@pytest.fixture
def only(config):
    """Return a function: ``only("ctc")`` is the configuration with only that term."""

    def choose(*names, **changes):
        terms = {n: getattr(config.terms, n) for n in names}
        return dataclasses.replace(config, terms=TermsConfig(**terms), **changes)

    return choose
