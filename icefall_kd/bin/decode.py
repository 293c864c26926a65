"""Decode a Shar set with a checkpoint and score it.

    python -m icefall_kd.bin.decode --checkpoint exp/pretrained.pt \\
      --shar-dir data/shar/test --method greedy_search --out-dir exp/decode

decodes with full context; add ``--streaming --chunk-size 16 --left-context 64`` to feed
a causal model chunk by chunk.  The methods ctc_* search over the CTC head, the others
over the transducer.  Writes recogs-, errs-, wer-summary- and result- files into
--out-dir.  A result of the same checkpoint that is there already is kept.

--hotwords, a file with a phrase on each line, lets modified_beam_search find these
rather than miss them; icefall_kd/decoding/hotwords.py says what a line may hold.

--alignment, a CTM file of bin.align, adds how late words are recognised, mean and 90th
percentile in ms: the emission delay, and the latency when streaming; what they are is
said in icefall_kd/decoding/delay.py.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from icefall_kd.cli import command_parser, expected_failures, require_packages
from icefall_kd.cpu import tune_cpu
from icefall_kd.decoding import DECODERS, DecodeOptions
from icefall_kd.decoding.alignment import SetAlignment
from icefall_kd.decoding.heads import count_parameters
from icefall_kd.decoding.hotwords import add_hotwords, read_hotwords
from icefall_kd.decoding.recognise import count_cuts, load_recogniser, recognise
from icefall_kd.decoding.scoring import result_path, write_results
from icefall_kd.decoding.setting import (
    Chunking,
    kept_result,
    setting_facts,
    setting_name,
)
from icefall_kd.io import as_path, sha256_file
from icefall_kd.logs import setup_logging
from icefall_kd.training.distributed import check_device


def get_parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument(
        "--checkpoint", type=Path, required=True, help="file of bin.average or of a run"
    )
    p.add_argument("--shar-dir", type=as_path, required=True, help="folder or URL")
    p.add_argument("--out-dir", type=Path, required=True, help="receives the results")
    p.add_argument(
        "--method",
        choices=sorted(DECODERS),
        default="greedy_search",
        help="search",
    )
    p.add_argument("--beam", type=int, default=4, help="hypotheses of a beam search")
    p.add_argument(
        "--blank-penalty",
        type=float,
        default=0.0,
        help="subtracted from the blank's log-probability; above 0 for fewer deletions",
    )
    add_hotwords(p)
    p.add_argument("--streaming", action="store_true", help="chunk by chunk")
    p.add_argument("--chunk-size", type=int, default=16, help="20 ms frames")
    p.add_argument("--left-context", type=int, default=64, help="20 ms frames")
    p.add_argument(
        "--max-duration",
        type=float,
        help="s in a batch; default: 200 when streaming, else one utterance at a time, "
        "because padding moves the scores of a Zipformer a little",
    )
    p.add_argument("--alignment", type=Path, help="of the set, a file of bin.align")
    p.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda or cuda:<number>",
    )
    p.add_argument("--force", action="store_true", help="decode again")
    return p


def default_duration(args: argparse.Namespace) -> float:
    """Return the seconds of audio in a batch; 0 is one utterance at a time."""
    if args.max_duration is not None:
        return args.max_duration
    return 200.0 if args.streaming else 0.0


def load_model(args: argparse.Namespace) -> tuple:
    """Return the model that ``args`` name, fit for what they ask, and its tokenizer."""
    head = DECODERS[args.method].head
    model, tokenizer = load_recogniser(args.checkpoint, head, args.device)
    if args.streaming and not model.encoder.causal:
        raise ValueError(
            f"{args.checkpoint} is not causal and cannot stream; train with "
            "encoder.causal=true or leave out --streaming"
        )
    return model, tokenizer


def run(args: argparse.Namespace) -> dict:
    """Decode as ``args`` say; return what the result JSON holds."""
    from icefall_kd.cache.codec_file import load_codecs
    from icefall_kd.cache.field import shard_ids
    from icefall_kd.cache.reader import open_shar

    check_device(args.device)
    require_packages(*DECODERS[args.method].packages)
    shard_ids(args.shar_dir)  # a folder that is no Shar is told
    if not args.checkpoint.is_file():
        raise FileNotFoundError(f"{args.checkpoint}: no such checkpoint")
    chunking = Chunking(args.chunk_size, args.left_context) if args.streaming else None
    # Hotwords are cut into the tokens of the model.
    loaded = load_model(args) if args.hotwords else None
    hotwords = loaded and read_hotwords(args.hotwords, loaded[1], args.hotwords_score)
    options = DecodeOptions(
        args.method, args.beam, args.blank_penalty, hotwords=hotwords
    )
    set_name, suffix = args.shar_dir.name, setting_name(options, chunking)
    digest = sha256_file(args.checkpoint)
    alignment = SetAlignment.load(args.alignment, args.shar_dir)
    done = result_path(args.out_dir, set_name, suffix)
    kept = kept_result(done, digest, args.force, alignment.sha256)
    if kept:
        return kept
    model, tokenizer = loaded or load_model(args)
    recognitions, rtf = recognise(
        model,
        open_shar(args.shar_dir, model.fields),
        tokenizer,
        dataclasses.replace(options, unk_id=tokenizer.unk_id),
        chunking,
        max_duration=default_duration(args),
        total=count_cuts(args.shar_dir),
        codecs=load_codecs(args.shar_dir, model.fields),
    )
    facts = {
        "engine": "pytorch",
        **setting_facts(options, chunking),
        "checkpoint": str(args.checkpoint),
        "checkpoint_sha256": digest,
        **alignment.facts,
        "parameters": count_parameters(model, DECODERS[args.method].head),
        "rtf": round(rtf, 5),
        "device": str(args.device),
        "threads": torch.get_num_threads(),
    }
    figures = alignment.figures(recognitions, chunking)
    return write_results(args.out_dir, set_name, suffix, recognitions, facts, figures)


def main() -> None:
    setup_logging()
    with expected_failures("decode"):
        result = run(get_parser().parse_args())
    print(f"{result['set']} {result['suffix']}: WER {result['wer']:.2f} %")


if __name__ == "__main__":
    tune_cpu()  # of this process as a whole, so not in main(), which others may call
    main()
