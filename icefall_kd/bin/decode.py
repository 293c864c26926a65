"""Decode a Shar set with a checkpoint and score it.

    python -m icefall_kd.bin.decode --checkpoint exp/pretrained.pt \\
      --shar-dir data/shar/test --method greedy_search --out-dir exp/decode

decodes with full context; ``--streaming`` feeds a causal model chunk by chunk, in the
chunks of its configuration or of --chunk-size and --left-context.  The methods ctc_*
search over the CTC head, the others over the transducer.  Writes recogs-, errs-,
wer-summary- and result- files into --out-dir; of a set without transcripts recogs-,
hyps- and result- files.  A result that is there already is kept if the set, the
checkpoint, the options and the code are the same.

--hotwords, a file with a phrase on each line, lets modified_beam_search find these
rather than miss them; icefall_kd/decoding/hotwords.py says what a line may hold.

--alignment, a CTM file of bin.align, adds how late words are recognised, mean and 90th
percentile in ms: the emission delay, and the latency when streaming; what they are is
said in icefall_kd/recognition/delay.py.
"""

import argparse
from pathlib import Path
from typing import Any, Optional

import torch
from torch import nn

from icefall_kd.core.cli import (
    create_parser,
    exit_on_error,
    non_negative_float,
    require_packages,
)
from icefall_kd.core.cpu import tune_cpu
from icefall_kd.core.distributed import check_device
from icefall_kd.core.files import as_path, sha256_file
from icefall_kd.core.logs import setup_logging
from icefall_kd.decoding import DECODERS, DecodeOptions
from icefall_kd.decoding.hotwords import add_hotwords, read_hotwords
from icefall_kd.recognition.ctm import count_transcripts
from icefall_kd.recognition.delay import WordAlignment
from icefall_kd.recognition.long_audio import add_max_utterance
from icefall_kd.recognition.options import (
    Chunking,
    add_chunking,
    add_search,
    decoding_info,
    result_suffix,
    training_info,
)
from icefall_kd.recognition.recognise import load_recogniser, recognise
from icefall_kd.recognition.result_cache import cached_result, input_hashes
from icefall_kd.recognition.result_files import result_line, result_path, write_results
from icefall_kd.transducer.checkpoint import count_parameters


def get_parser() -> argparse.ArgumentParser:
    p = create_parser(__doc__)
    p.add_argument(
        "--checkpoint", type=Path, required=True, help="file of bin.average or of a run"
    )
    p.add_argument("--shar-dir", type=as_path, required=True, help="folder or URL")
    p.add_argument("--out-dir", type=Path, required=True, help="receives the results")
    add_search(p, DECODERS, "greedy_search")
    add_hotwords(p)
    add_chunking(p, "checkpoint")
    p.add_argument(
        "--max-duration",
        type=non_negative_float,
        help="s in a batch, 0: one utterance at a time (default: 200 when streaming, "
        "else 0, because padding moves the scores of a Zipformer a little)",
    )
    add_max_utterance(p)
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


def decode_setting(
    args: argparse.Namespace, model: nn.Module, tokenizer: Any
) -> tuple[DecodeOptions, Optional[Chunking]]:
    """Return the options of the search, and the chunks of streaming."""
    hotwords = args.hotwords and read_hotwords(
        args.hotwords, tokenizer, args.hotwords_score
    )
    options = DecodeOptions(
        args.method,
        args.beam,
        args.blank_penalty,
        tokenizer.unk_id,
        hotwords,
        max_utterance=args.max_utterance,
    )
    if not args.streaming:
        return options, None
    asked = (args.chunk_size, args.left_context)
    return options, Chunking.of(model, *asked, where=str(args.checkpoint))


def run(args: argparse.Namespace) -> dict:
    """Decode as ``args`` say; return what the result JSON holds."""
    from icefall_kd.fields.codecs.storage import load_codecs
    from icefall_kd.fields.reader import open_shar

    check_device(args.device)
    require_packages(*DECODERS[args.method].packages)
    total, _ = count_transcripts(args.shar_dir)
    head = DECODERS[args.method].head
    model, tokenizer, info = load_recogniser(args.checkpoint, head, args.device)
    options, chunking = decode_setting(args, model, tokenizer)
    set_name, suffix = args.shar_dir.name, result_suffix(options, chunking)
    alignment = WordAlignment.load(args.alignment, args.shar_dir)
    facts = {
        "engine": "pytorch",
        **decoding_info(options, chunking),
        "max_duration": default_duration(args),
        "checkpoint": str(args.checkpoint),
        "checkpoint_sha256": sha256_file(args.checkpoint),
        "training": training_info(info),
        **alignment.facts,
        "parameters": count_parameters(model, head),
        "device": str(args.device),
        "threads": torch.get_num_threads(),
        **input_hashes(args.shar_dir, model.fields),
    }
    done = result_path(args.out_dir, set_name, suffix)
    kept = cached_result(done, facts, args.force)
    if kept:
        return kept
    recognitions, rtf = recognise(
        model,
        open_shar(args.shar_dir, model.fields),
        tokenizer,
        options,
        chunking,
        max_duration=default_duration(args),
        total=total,
        codecs=load_codecs(args.shar_dir, model.fields),
    )
    facts["rtf"] = round(rtf, 5)
    figures = alignment.figures(recognitions, chunking)
    return write_results(args.out_dir, set_name, suffix, recognitions, facts, figures)


def main() -> None:
    setup_logging()
    with exit_on_error("decode"):
        result = run(get_parser().parse_args())
    print(result_line(result))


if __name__ == "__main__":
    tune_cpu()  # of this process as a whole, so not in main(), which others may call
    main()
