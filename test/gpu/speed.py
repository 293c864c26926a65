"""Measure training, losses, decoding and teachers on a GPU, on random inputs."""

import argparse
import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Callable

import runs
import torch
from torch import Tensor, nn

from icefall_kd import FBANK_SHIFT
from icefall_kd.core.config import ModelConfig
from icefall_kd.decoding import DecodeOptions, decode
from icefall_kd.decoding.streaming import decode_streaming
from icefall_kd.training.config import parse_config
from icefall_kd.training.optim import ScaledAdam
from icefall_kd.transducer.bigram import make_bigram_table
from icefall_kd.transducer.denominator import sum_label_sequences
from icefall_kd.transducer.loss import ctc_loss, pruned_transducer_loss
from icefall_kd.transducer.model import AsrModel, build_model
from icefall_kd.zipformer.scaling import set_batch_count

CONF = Path(__file__).parents[2] / "egs/librispeech/KD/conf"
UTTERANCE = 15.0  # s
TOKENS_PER_SECOND = 5  # of 500 BPE tokens
SYNCS = ("aten::_local_scalar_dense", "aten::nonzero", "cudaStreamSynchronize")


def get_sizes(args: argparse.Namespace) -> dict[str, ModelConfig]:
    """Return the shapes of the measured students."""
    if args.tiny:
        return {"tiny": runs.STUDENT}
    confs = {"23M": "student.yaml", "65M": "student_m.yaml"}
    return {
        name: parse_config(["--config", str(CONF / conf), "--exp-dir", "x"]).model
        for name, conf in confs.items()
    }


def synchronise(args: argparse.Namespace) -> None:
    """Wait until the device has finished."""
    if args.device == "cuda":
        torch.cuda.synchronize()


def timed(args: argparse.Namespace, work: Callable[[], object], rounds: int) -> float:
    """Return the mean seconds of ``work``, after one run more."""
    work()
    synchronise(args)
    start = time.perf_counter()
    for _ in range(rounds):
        work()
    synchronise(args)
    return (time.perf_counter() - start) / rounds


def make_batch(
    args: argparse.Namespace, seconds: float, vocab_size: int
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Return random features, their lengths and tokens, of ``seconds`` of audio."""
    length = min(UTTERANCE, seconds)
    count, frames = max(1, round(seconds / length)), round(length / FBANK_SHIFT)
    torch.manual_seed(0)
    x = torch.randn(count, frames, 80, device=args.device)
    lens = torch.full((count,), frames, device=args.device)
    tokens = torch.randint(1, vocab_size, (count, round(length * TOKENS_PER_SECOND)))
    return x, lens, tokens.tolist()


def make_step(
    args: argparse.Namespace, config: ModelConfig, seconds: float
) -> Callable[[], object]:
    """Return a function that trains one step, in bfloat16 on a GPU."""
    model = build_model(config).to(args.device).train()
    set_batch_count(model, 2000.0)
    optimizer = ScaledAdam([{"params": list(model.parameters())}], 0.01, 2.0)
    x, lens, tokens = make_batch(args, seconds, config.vocab_size)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        enabled = args.device == "cuda"
        with torch.autocast(args.device, torch.bfloat16, enabled=enabled):
            out, out_lens = model.forward_encoder(x, lens)
            out_lens = out_lens.cpu()
            simple, pruned = pruned_transducer_loss(
                model, out, out_lens, tokens, backend="torch"
            )
            ctc = ctc_loss(model.ctc_output(out), out_lens, tokens)
        (0.5 * simple + pruned + 0.2 * ctc).backward()
        optimizer.step()

    return step


def time_training(args: argparse.Namespace) -> dict:
    """Return seconds of audio per second, and peak memory, by size and batch."""
    found: dict = {}
    for name, config in get_sizes(args).items():
        for seconds in (4,) if args.tiny else (200, 600, 1000):
            if args.device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                took = timed(args, make_step(args, config, seconds), 2 + seconds // 200)
            except RuntimeError as e:
                if "out of memory" not in str(e):
                    raise
                found[f"{name} {seconds} s"] = "out of memory"
                continue
            found[f"{name} {seconds} s"] = {
                "audio_per_second": round(seconds / took, 1)
            }
            if args.device == "cuda":
                peak = torch.cuda.max_memory_allocated() / 2**30
                found[f"{name} {seconds} s"]["peak_gib"] = round(peak, 2)
    return found


def profile_training(args: argparse.Namespace) -> dict:
    """Write the operators of a step; return the numbers of launches and waits."""
    config = next(iter(get_sizes(args).values()))
    step = make_step(args, config, 4 if args.tiny else 600)
    step()
    with torch.profiler.profile() as profiler:
        step()
        synchronise(args)
    averages = profiler.key_averages()
    key = "self_cuda_time_total" if args.device == "cuda" else "self_cpu_time_total"
    table = averages.table(key, row_limit=40, max_name_column_width=60)
    (args.out / "profile.txt").write_text(table)
    counts = {e.key: e.count for e in averages}
    names = (*SYNCS, "cudaLaunchKernel")
    return {name: counts[name] for name in names if name in counts}


def time_losses(args: argparse.Namespace) -> dict:
    """Return the milliseconds of losses with gradient, N = 20, T = 400, V = 500."""
    size, frames, vocab = (4, 50, 30) if args.tiny else (20, 400, 500)
    dim = 64 if args.tiny else 512
    config = ModelConfig(vocab_size=vocab, decoder_dim=dim, joiner_dim=dim)
    model = build_model(config).to(args.device)
    channels = max(config.encoder.encoder_dim)
    out = torch.randn(size, frames, channels, device=args.device, requires_grad=True)
    lens = torch.linspace(frames, 0.7 * frames, size).long()
    tokens = [torch.randint(1, vocab, (int(n) // 5,)).tolist() for n in lens]
    bigram = make_bigram_table(tokens, vocab)

    def transducer() -> None:
        losses = pruned_transducer_loss(model, out, lens, tokens, backend="torch")
        (losses[0] + losses[1]).backward()

    def lfmmi() -> None:
        log_probs = model.ctc_output(out)
        sum_label_sequences(log_probs, lens.to(args.device), bigram)[0].sum().backward()

    return {
        work.__name__: round(1000 * timed(args, work, 3), 1)
        for work in (transducer, lfmmi)
    }


@torch.no_grad()
def time_decoding(args: argparse.Namespace) -> dict:
    """Return seconds of audio per second of searches, and of streaming."""
    name, config = next(iter(get_sizes(args).items()))
    seconds = 3 if args.tiny else 300
    model = build_model(config).to(args.device).eval()
    x, lens, _ = make_batch(args, seconds, config.vocab_size)
    found = {}
    for method in ("greedy_search", "modified_beam_search", "ctc_greedy_search"):
        options = DecodeOptions(method)

        def work(options: DecodeOptions = options) -> None:
            decode(model, *model.forward_encoder(x, lens), options)

        found[f"{name} {method}"] = round(seconds / timed(args, work, 1), 1)
    causal = _make_causal(config).to(args.device)
    took = timed(
        args, lambda: decode_streaming(causal, list(x), 32, 128, DecodeOptions()), 1
    )
    found[f"{name} streaming greedy_search"] = round(seconds / took, 1)
    return found


def _make_causal(config: ModelConfig) -> AsrModel:
    encoder = dataclasses.replace(
        config.encoder, causal=True, chunk_size=(32,), left_context_frames=(128,)
    )
    return build_model(dataclasses.replace(config, encoder=encoder)).eval()


@torch.no_grad()
def time_teachers(args: argparse.Namespace) -> dict:
    """Return seconds of audio per second of teachers with random weights."""
    from transformers import WavLMConfig, WavLMModel, WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    wavlm = WavLMConfig(
        hidden_size=64 if args.tiny else 1024,
        num_hidden_layers=2 if args.tiny else 24,
        num_attention_heads=16,
        intermediate_size=64 if args.tiny else 4096,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
    )
    whisper = WhisperConfig(
        d_model=64 if args.tiny else 1280,
        encoder_layers=2 if args.tiny else 32,
        encoder_attention_heads=4 if args.tiny else 20,
        encoder_ffn_dim=64 if args.tiny else 5120,
        num_mel_bins=128,
    )
    found = {}
    seconds = 2 if args.tiny else 300
    waves = torch.randn(max(1, seconds // 15), min(seconds, 15) * 16000)
    mel = torch.randn(max(1, seconds // 30), 128, 3000)
    for name, build, x, length in (
        ("wavlm_large", lambda: WavLMModel(wavlm), waves, seconds),
        ("whisper_large_v3", lambda: WhisperEncoder(whisper), mel, 30 * len(mel)),
    ):
        model = build().to(args.device).eval()
        for dtype in ("float16", "bfloat16") if args.device == "cuda" else ("float32",):
            kind = getattr(torch, dtype)
            model, batch = model.to(kind), x.to(args.device, kind)
            took = timed(args, partial(model, batch), 1 if args.tiny else 3)
            found[f"{name} {dtype}"] = round(length / took, 1)
    return found


def time_compiled(args: argparse.Namespace) -> dict:
    """Return the speed-up of a teacher-like block by ``torch.compile``."""
    if args.device == "cpu" or not hasattr(torch, "compile"):
        return {"status": "skipped", "error": "needs CUDA and torch 2"}
    name, config = next(iter(get_sizes(args).items()))
    model = build_model(config).to(args.device).eval()
    x, lens, _ = make_batch(args, 300, config.vocab_size)
    compiled = torch.compile(model.encoder_embed)
    parts: tuple[nn.Module, ...] = (model.encoder_embed, compiled)
    with torch.no_grad(), torch.autocast(args.device, torch.bfloat16):
        plain, fast = (
            timed(args, lambda part=part: part(x, lens), 5) for part in parts
        )
    return {f"{name} front end, ratio": round(plain / fast, 2)}
