"""Decode a Shar set with a checkpoint and compute the WER.

    python -m icefall_kd.bin.decode --checkpoint exp/pretrained.pt \\
      --shar-dir data/shar/test --method greedy_search --out-dir exp/decode

The default is full context; --streaming decodes in chunks.  The methods ctc_* use the
CTC head, the others the transducer.

This writes recogs-, errs-, wer-summary- and result- files to --out-dir, or recogs-,
hyps- and result- files if the set has no transcripts.  An existing result is reused if
set, checkpoint, options and code are unchanged.

--alignment adds the emission delay, from the end of a word to the frame of its last
token.  In streaming, it also adds the latency, until the audio that this frame needs
has arrived.  The results have mean and 90th percentile in ms.
"""

import argparse
from pathlib import Path

import torch

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
from icefall_kd.decoding.hlg import read_graph
from icefall_kd.decoding.hotwords import read_hotwords
from icefall_kd.recognition.options import (
    Chunking,
    add_decoding_options,
    decoding_info,
    result_suffix,
    training_info,
)
from icefall_kd.recognition.result_files import result_line

STREAMING_DURATION = 200.0  # s of audio in a batch of streams


def get_parser() -> argparse.ArgumentParser:
    p = create_parser(__doc__)
    p.add_argument(
        "--checkpoint", type=Path, required=True, help="file of bin.average or a run"
    )
    p.add_argument("--shar-dir", type=as_path, required=True, help="folder or URL")
    p.add_argument("--out-dir", type=Path, required=True, help="folder of the results")
    add_decoding_options(p, "checkpoint")
    p.add_argument(
        "--max-duration",
        type=non_negative_float,
        help="maximum duration of a batch in s; 0 decodes one utterance at a time, "
        "because padding changes the scores slightly (default: "
        f"{STREAMING_DURATION:g} in streaming, else 0)",
    )
    p.add_argument("--alignment", type=Path, help="CTM file of the set, from bin.align")
    p.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda or cuda:<number>",
    )
    p.add_argument("--force", action="store_true", help="ignore an existing result")
    return p


def run(args: argparse.Namespace) -> dict:
    """Run the command; return the contents of the result JSON."""
    from icefall_kd.fields.codecs.storage import load_codecs
    from icefall_kd.fields.reader import open_shar
    from icefall_kd.recognition.ctm import count_transcripts
    from icefall_kd.recognition.delay import WordAlignment
    from icefall_kd.recognition.recognise import load_recogniser, recognise
    from icefall_kd.recognition.result_cache import decode_or_reuse, input_hashes
    from icefall_kd.transducer.checkpoint import count_parameters

    check_device(args.device)
    require_packages(*DECODERS[args.method].packages)
    total, _ = count_transcripts(args.shar_dir)
    head = DECODERS[args.method].head
    model, tokenizer, info = load_recogniser(args.checkpoint, head, args.device)
    options = DecodeOptions(
        args.method,
        args.beam,
        args.blank_penalty,
        tokenizer.unk_id,
        args.hotwords and read_hotwords(args.hotwords, tokenizer, args.hotwords_score),
        args.graph and read_graph(args.graph, tokenizer),
        args.max_utterance,
    )
    chunking = None
    if args.streaming:
        chunking = Chunking.from_model(
            model, args.chunk_size, args.left_context, where=str(args.checkpoint)
        )
    max_duration = args.max_duration
    if max_duration is None:
        max_duration = STREAMING_DURATION if chunking else 0.0
    alignment = WordAlignment.load(args.alignment, args.shar_dir)
    return decode_or_reuse(
        args.out_dir,
        args.shar_dir.name,
        result_suffix(options, chunking),
        {
            "engine": "pytorch",
            **decoding_info(options, chunking),
            "max_duration": max_duration,
            "checkpoint": str(args.checkpoint),
            "checkpoint_sha256": sha256_file(args.checkpoint),
            "training": training_info(info),
            **alignment.info,
            "parameters": count_parameters(model, head),
            "device": str(args.device),
            "threads": torch.get_num_threads(),
            **input_hashes(args.shar_dir, model.fields),
        },
        decode=lambda: recognise(
            model,
            open_shar(args.shar_dir, model.fields),
            tokenizer,
            options,
            chunking,
            max_duration=max_duration,
            total=total,
            codecs=load_codecs(args.shar_dir, model.fields),
        ),
        measure=lambda found: alignment.delay_metrics(found, chunking),
        force=args.force,
    )


def main() -> None:
    setup_logging()
    with exit_on_error("decode"):
        result = run(get_parser().parse_args())
    print(result_line(result))


if __name__ == "__main__":
    tune_cpu()  # not in main(), because it changes the whole process
    main()
