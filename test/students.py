"""Small students with random weights, and fixtures of real prompts.

The scale of the weights makes the output depend on all input.  The output layers are
scaled on real prompts, so that a student emits many different tokens.
"""

import copy
from pathlib import Path
from types import SimpleNamespace

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
from icefall_kd.decoding import DecodeOptions, get_search_class
from icefall_kd.decoding.hlg import DecodingGraph
from icefall_kd.fields.reader import open_shar
from icefall_kd.recognition.recognise import recognise, reference_words
from icefall_kd.transducer.checkpoint import save_pretrained
from icefall_kd.transducer.model import AsrModel, Decoder, Joiner, build_model

# options of bin.decode, with the chunks of STUDENT
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
    """Return a model in eval mode that emits many different tokens for ``waves``."""
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
    output.bias[0] += 8.0  # about four blanks in ten frames
    ctc = model.ctc_output[1]
    standardise(ctc, ctc(frames))
    ctc.weight.mul_(4.0)
    ctc.bias.mul_(4.0)
    ctc.bias[0] += 8.0  # about four blanks in ten frames
    return model


def standardise(layer, outputs):
    """Scale a linear layer so that its ``outputs`` get mean 0 and deviation 1."""
    std, mean = torch.std_mean(outputs, dim=0)
    layer.weight.div_(std[:, None])
    layer.bias.sub_(mean).div_(std)


@pytest.fixture(scope="session")
def cuts(asterisk):
    """Prompts of the test set."""
    return list(open_shar(asterisk / "data/shar/test"))


@pytest.fixture(scope="session")
def waves(cuts):
    """id -> (S,) float32 at 16 kHz, of the test set."""
    return {cut.id: load_wave(cut).numpy() for cut in cuts}


@pytest.fixture(scope="session")
def parts(waves):
    """Five waves of 7 s: prompts between two pauses of 0.5 s."""
    speech = np.concatenate(list(waves.values()))[: 5 * 96000].reshape(5, 96000)
    return [np.pad(part, 8000) for part in speech]


@pytest.fixture(scope="session")
def tokenizer(cuts):
    """BPE tokenizer of the transcripts."""
    texts = [" ".join(reference_words(cut)) for cut in cuts]
    return Tokenizer.from_bytes(train_bpe(texts, VOCAB_SIZE))


@pytest.fixture(scope="session")
def pristine_student(waves):
    """A causal student that a test must not change."""
    some = [torch.from_numpy(w) for w in list(waves.values())[:12]]
    return random_student(STUDENT, some)


@pytest.fixture
def student(pristine_student):
    """A causal student that a test may change."""
    return copy.deepcopy(pristine_student)


@pytest.fixture(scope="session")
def checkpoint(pristine_student, tokenizer, tmp_path_factory):
    """Checkpoint of the student, as bin.average writes it."""
    path = tmp_path_factory.mktemp("student") / "pretrained.pt"
    save_pretrained(
        path, pristine_student.state_dict(), STUDENT, tokenizer.model_bytes, {}
    )
    return path


def write_own_words(
    folder, cuts, model, tokenizer, method="greedy_search", chunking=None
):
    """Write a Shar folder in which the model's hypotheses are the transcripts."""
    labelled = copy.deepcopy(cuts)
    options = DecodeOptions(method, unk_id=tokenizer.unk_id)
    found, _ = recognise(model, labelled, tokenizer, options, chunking)
    for cut, recognition in zip(labelled, found):
        cut.supervisions[0].text = " ".join(recognition.hyp)
    write_shar(labelled, folder)
    return folder


def write_unlabelled(folder, cuts):
    """Write a Shar folder without transcripts."""
    unlabelled = copy.deepcopy(cuts)
    for cut in unlabelled:
        cut.supervisions = []
    write_shar(unlabelled, folder)
    return folder


def call(command, *arguments):
    """Run a command of icefall_kd.bin; return the result of its run()."""
    arguments = [str(argument) for argument in arguments]
    return command.run(command.get_parser().parse_args(arguments))


def call_decode(checkpoint, shar, out, *more):
    """Run bin.decode; return the contents of the result JSON."""
    paths = ["--checkpoint", checkpoint, "--shar-dir", shar, "--out-dir", out]
    return call(decode, *paths, *more)


def model_without_encoder(vocab_size: int, encoder_dim: int, size: int = 8) -> AsrModel:
    """Return a model in eval mode with an identity as its encoder."""
    return AsrModel(
        encoder_embed=nn.Identity(),
        encoder=nn.Identity(),
        decoder=Decoder(vocab_size, size),
        joiner=Joiner(encoder_dim, size, size, vocab_size),
        encoder_dim=encoder_dim,
        decoder_dim=size,
        vocab_size=vocab_size,
    ).eval()


def random_joiner(seed: int, vocab_size: int, dim: int, context_size: int = 2):
    """Return a predictor and a joiner that emit often and have similar scores."""
    torch.manual_seed(seed)
    decoder = Decoder(vocab_size, dim, context_size).eval()
    joiner = Joiner(dim, dim, dim, vocab_size).eval()
    with torch.no_grad():
        for p in joiner.parameters():
            p.copy_(torch.randn_like(p))
        for p in decoder.parameters():
            p.mul_(2)
    return SimpleNamespace(decoder=decoder, joiner=joiner)


class LogSoftmaxHead(nn.Module):
    """CTC head that reads the frames as logits."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, encoder_out):
        return (self.scale * encoder_out).log_softmax(dim=-1)


def any_tokens(vocab_size: int) -> DecodingGraph:
    """Return the CTC topology: a graph without words, whose arcs have no cost."""
    import kaldifst

    fst = kaldifst.StdVectorFst()
    for token in range(vocab_size):
        fst.add_state()
        fst.set_final(token, 0.0)
    fst.start = 0
    for before in range(vocab_size):  # state: last label
        for token in range(vocab_size):
            fst.add_arc(before, kaldifst.StdArc(1 + token, 0, 0.0, token))
    return DecodingGraph(Path("H.fst"), "0" * 64, fst)


def search_options(method: str, vocab_size: int, **others) -> DecodeOptions:
    """Return options, with a graph of all token sequences if the method needs one."""
    if get_search_class(method).uses_graph:
        others["graph"] = any_tokens(vocab_size)
    return DecodeOptions(method, **others)


def collapse(path):
    """Return tokens and first frames of a path: no repetitions, then no blanks."""
    kept = [
        (token, t)
        for t, token in enumerate(path)
        if token != 0 and (t == 0 or token != path[t - 1])
    ]
    return tuple(token for token, _ in kept), tuple(t for _, t in kept)


CTC_MODEL = SimpleNamespace(ctc_output=LogSoftmaxHead())
