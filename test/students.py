"""Fixtures: real prompts, and a small student with random weights that speaks.

Its weights are drawn at full size and its projections fitted to real prompts, so that
it emits many different tokens and depends on everything that it reads.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from icefall_kd.bin import decode
from icefall_kd.core.config import ModelConfig, ZipformerConfig
from icefall_kd.data.cuts import load_wave
from icefall_kd.data.features import compute_fbank
from icefall_kd.data.shar import write_shar
from icefall_kd.data.tokens import Tokenizer, train_bpe
from icefall_kd.decoding import DecodeOptions
from icefall_kd.fields.reader import open_shar
from icefall_kd.recognition.recognise import recognise, reference_words
from icefall_kd.transducer.checkpoint import save_pretrained
from icefall_kd.transducer.model import AsrModel, Decoder, Joiner, build_model

# The chunks of STUDENT, below.
STREAMING = ["--streaming", "--chunk-size", "16", "--left-context", "64"]
VOCAB_SIZE = 90
STUDENT = ModelConfig(
    encoder=ZipformerConfig(
        frontend_channels=(4, 8, 128),
        convnext_expansion=1,
        downsampling_factor=(1, 2, 4),
        num_encoder_layers=(1, 1, 1),
        encoder_dim=(32, 48, 64),
        encoder_unmasked_dim=(32, 32, 32),
        feedforward_dim=(48, 48, 64),
        num_heads=(2, 4, 2),
        query_head_dim=(8,),
        value_head_dim=(8, 4, 8),
        pos_dim=16,
        cnn_module_kernel=(15, 15, 7),
        causal=True,
        chunk_size=(16, 32, -1),
        left_context_frames=(64,),
    ),
    vocab_size=VOCAB_SIZE,
    decoder_dim=32,
    joiner_dim=32,
)


@torch.no_grad()
def random_student(config: ModelConfig, waves, seed: int = 0):
    """Return a model in eval mode that turns ``waves`` into many different tokens."""
    torch.manual_seed(seed)
    model = build_model(config).eval()
    for p in model.parameters():
        if p.dim() > 1:
            p.copy_(torch.randn_like(p) * p[0].numel() ** -0.5)
    model.encoder.set_chunk(-1, -1)
    projection, output = model.joiner.encoder_proj, model.joiner.output_linear
    frames = torch.cat(
        [
            model.forward_encoder(f[None], torch.tensor([len(f)]))[0][0]
            for f in compute_fbank(waves)
        ]
    )
    standardise(projection, projection(frames))
    output.weight.normal_()
    output.bias[0] += 8.0  # blanks: about four frames of ten
    ctc = model.ctc_output[1]
    standardise(ctc, ctc(frames))
    ctc.weight.mul_(4.0)
    ctc.bias.mul_(4.0)
    ctc.bias[0] += 8.0  # and as many here
    return model


def standardise(layer, outputs):
    """Give every output of a linear layer mean 0 and deviation 1 over ``outputs``."""
    std, mean = torch.std_mean(outputs, dim=0)
    layer.weight.div_(std[:, None])
    layer.bias.sub_(mean).div_(std)


@pytest.fixture(scope="session")
def cuts(asterisk):
    """The test prompts."""
    return list(open_shar(asterisk / "data/shar/test"))


@pytest.fixture(scope="session")
def waves(cuts):
    """The test prompts: id -> (S,) float32 array, 16 kHz."""
    return {cut.id: load_wave(cut).numpy() for cut in cuts}


@pytest.fixture(scope="session")
def parts(waves):
    """Five parts of a long recording, 7 s each: prompts between two pauses of 0.5 s."""
    speech = np.concatenate(list(waves.values()))[: 5 * 96000].reshape(5, 96000)
    return [np.pad(part, 8000) for part in speech]


@pytest.fixture(scope="session")
def tokenizer(cuts):
    """BPE tokens of the prompts' texts."""
    texts = [" ".join(reference_words(cut)) for cut in cuts]
    return Tokenizer.from_bytes(train_bpe(texts, VOCAB_SIZE))


@pytest.fixture(scope="session")
def pristine_student(waves):
    some = [torch.from_numpy(w) for w in list(waves.values())[:12]]
    return random_student(STUDENT, some)


@pytest.fixture
def student(pristine_student):
    """A causal student with random weights, to do with as one likes."""
    return copy.deepcopy(pristine_student)


@pytest.fixture(scope="session")
def checkpoint(pristine_student, tokenizer, tmp_path_factory):
    """The student's file, as bin.average writes one."""
    path = tmp_path_factory.mktemp("student") / "pretrained.pt"
    save_pretrained(
        path, pristine_student.state_dict(), STUDENT, tokenizer.model_bytes, {}
    )
    return path


def write_own_words(
    folder, cuts, model, tokenizer, method="greedy_search", chunking=None
):
    """Write prompts as a Shar folder; the transcripts are what the model says."""
    some = copy.deepcopy(cuts)
    options = DecodeOptions(method, unk_id=tokenizer.unk_id)
    found, _ = recognise(model, some, tokenizer, options, chunking)
    for cut, recognition in zip(some, found):
        cut.supervisions[0].text = " ".join(recognition.hyp)
    write_shar(some, folder)
    return folder


def write_unlabelled(folder, cuts):
    """Write prompts as a Shar folder without transcripts."""
    some = copy.deepcopy(cuts)
    for cut in some:
        cut.supervisions = []
    write_shar(some, folder)
    return folder


def call(command, *arguments):
    """Run a command of icefall_kd.bin; returns what its run() does."""
    arguments = [str(argument) for argument in arguments]
    return command.run(command.get_parser().parse_args(arguments))


def call_decode(checkpoint, shar, out, *more):
    """Run bin.decode; returns what the result JSON holds."""
    paths = ["--checkpoint", checkpoint, "--shar-dir", shar, "--out-dir", out]
    return call(decode, *paths, *more)


def model_without_encoder(vocab_size: int, encoder_dim: int, size: int = 8) -> AsrModel:
    """Return a model, in evaluation mode, whose encoder is left out, the rest real."""
    return AsrModel(
        encoder_embed=nn.Identity(),
        encoder=nn.Identity(),
        decoder=Decoder(vocab_size, size),
        joiner=Joiner(encoder_dim, size, size, vocab_size),
        encoder_dim=encoder_dim,
        decoder_dim=size,
        vocab_size=vocab_size,
    ).eval()
