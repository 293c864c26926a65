"""Decode what teachers said of a set, from its fields of kind ctc, and score it.

    python -m icefall_kd.bin.decode_fields --shar-dir data/shar/test \\
      --fields adapter_ctc adapter_base_ctc --bpe-model data/lang_bpe_150/bpe.model \\
      --out-dir exp/ensemble/decode

Several fields are an ensemble: the mean of their distributions, as the term ``essence``
takes it.  Neither a teacher nor a student is needed, and what is decoded is what a
student is told: top-k tokens and the tail.  Writes files as bin.decode does.
"""

import argparse
from pathlib import Path

import torch

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.cpu import tune_cpu
from icefall_kd.core.files import as_path, sha256_file
from icefall_kd.core.logs import setup_logging
from icefall_kd.decoding import DECODERS, DecodeOptions
from icefall_kd.recognition.ctm import count_transcripts
from icefall_kd.recognition.options import add_search, decoding_info, result_suffix
from icefall_kd.recognition.result_cache import cached_result, input_hashes
from icefall_kd.recognition.result_files import result_line, result_path, write_results

METHODS = sorted(name for name, search in DECODERS.items() if search.head == "ctc")


def get_parser() -> argparse.ArgumentParser:
    p = create_parser(__doc__)
    p.add_argument("--shar-dir", type=as_path, required=True, help="folder or URL")
    p.add_argument("--fields", nargs="+", required=True, help="of kind ctc")
    p.add_argument("--bpe-model", type=Path, required=True, help="of their tokens")
    p.add_argument("--out-dir", type=Path, required=True, help="receives the results")
    add_search(p, METHODS, "ctc_prefix_beam_search")
    p.add_argument("--force", action="store_true", help="decode again")
    return p


def run(args: argparse.Namespace) -> dict:
    """Decode as ``args`` say; return what the result JSON holds."""
    from icefall_kd.data.tokens import Tokenizer
    from icefall_kd.distill.term import check_kind, check_vocabulary
    from icefall_kd.fields.codecs.storage import load_codecs
    from icefall_kd.fields.format import load_field_info
    from icefall_kd.fields.reader import open_shar
    from icefall_kd.recognition.fields import StoredDistributions
    from icefall_kd.recognition.recognise import recognise

    total, _ = count_transcripts(args.shar_dir)
    if not args.bpe_model.is_file():
        raise FileNotFoundError(f"{args.bpe_model}: no such BPE model")
    tokenizer = Tokenizer.from_bytes(args.bpe_model.read_bytes())
    infos = [load_field_info(args.shar_dir, name) for name in args.fields]
    for info in infos:
        check_kind("--fields", info, "ctc")
        check_vocabulary(info, tokenizer)
    options = DecodeOptions(
        args.method, args.beam, args.blank_penalty, unk_id=tokenizer.unk_id
    )
    set_name, suffix = args.shar_dir.name, result_suffix(options, None)
    facts = {
        "engine": "stored fields",
        **decoding_info(options, None),
        "checkpoint": "+".join(args.fields),
        "bpe_model_sha256": sha256_file(args.bpe_model),
        "parameters": 0,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        **input_hashes(args.shar_dir, args.fields),
    }
    done = result_path(args.out_dir, set_name, suffix)
    kept = cached_result(done, facts, args.force)
    if kept:
        return kept
    model = StoredDistributions(
        args.fields, [info.dim for info in infos], tokenizer.vocab_size
    ).eval()
    recognitions, rtf = recognise(
        model,
        open_shar(args.shar_dir, model.fields),
        tokenizer,
        options,
        total=total,
        codecs=load_codecs(args.shar_dir, model.fields),
    )
    facts["rtf"] = round(rtf, 5)
    return write_results(args.out_dir, set_name, suffix, recognitions, facts)


def main() -> None:
    setup_logging()
    with exit_on_error("decode_fields"):
        result = run(get_parser().parse_args())
    print(result_line(result))


if __name__ == "__main__":
    tune_cpu()
    main()
