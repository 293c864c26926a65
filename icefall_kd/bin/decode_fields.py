"""Decode fields of kind ctc and compute the WER of their teachers.

    python -m icefall_kd.bin.decode_fields --shar-dir data/shar/test \\
      --fields vocab_teacher_ctc vocab_teacher_base_ctc \\
      --bpe-model data/lang_bpe_150/bpe.model --out-dir exp/ensemble/decode

Several fields form an ensemble: the command decodes the mean of their distributions, as
in the term ``essence``.  It reads the same top-k distributions as training and needs no
model.  It writes the same files as bin.decode.
"""

import argparse
from pathlib import Path

import torch

from icefall_kd.core.cli import create_parser, exit_on_error, require_packages
from icefall_kd.core.cpu import tune_cpu
from icefall_kd.core.files import as_path, sha256_file
from icefall_kd.core.logs import setup_logging
from icefall_kd.decoding import DECODERS, DecodeOptions
from icefall_kd.decoding.hlg import read_graph
from icefall_kd.recognition.options import (
    add_search_options,
    decoding_info,
    result_suffix,
)
from icefall_kd.recognition.result_files import result_line

METHODS = [name for name, search in DECODERS.items() if search.head == "ctc"]


def get_parser() -> argparse.ArgumentParser:
    p = create_parser(__doc__)
    p.add_argument("--shar-dir", type=as_path, required=True, help="folder or URL")
    p.add_argument("--fields", nargs="+", required=True, help="fields of kind ctc")
    p.add_argument(
        "--bpe-model", type=Path, required=True, help="BPE model of the fields' tokens"
    )
    p.add_argument("--out-dir", type=Path, required=True, help="folder of the results")
    add_search_options(p, METHODS, "ctc_prefix_beam_search")
    p.add_argument("--force", action="store_true", help="ignore an existing result")
    return p


def run(args: argparse.Namespace) -> dict:
    """Run the command; return the contents of the result JSON."""
    from icefall_kd.data.tokens import Tokenizer
    from icefall_kd.distill.term import check_kind, check_vocabulary
    from icefall_kd.fields.codecs.storage import load_codecs
    from icefall_kd.fields.format import load_field_info
    from icefall_kd.fields.reader import open_shar
    from icefall_kd.recognition.ctm import count_transcripts
    from icefall_kd.recognition.fields import StoredDistributions
    from icefall_kd.recognition.recognise import recognise
    from icefall_kd.recognition.result_cache import decode_or_reuse, input_hashes

    require_packages(*DECODERS[args.method].packages)
    total, _ = count_transcripts(args.shar_dir)
    if not args.bpe_model.is_file():
        raise FileNotFoundError(
            f"--bpe-model {args.bpe_model}: file not found; give the bpe.model of the "
            "student whose tokens the fields have"
        )
    tokenizer = Tokenizer.from_bytes(args.bpe_model.read_bytes())
    fields = [load_field_info(args.shar_dir, name) for name in args.fields]
    for field in fields:
        check_kind("--fields", field, "ctc")
        check_vocabulary(field, tokenizer)
    dims = [field.dim for field in fields]
    model = StoredDistributions(args.fields, dims, tokenizer.vocab_size).eval()
    options = DecodeOptions(
        args.method,
        args.beam,
        args.blank_penalty,
        tokenizer.unk_id,
        graph=args.graph and read_graph(args.graph, tokenizer),
    )
    return decode_or_reuse(
        args.out_dir,
        args.shar_dir.name,
        result_suffix(options, None),
        {
            "engine": "stored fields",
            **decoding_info(options, None),
            "checkpoint": "+".join(args.fields),
            "bpe_model_sha256": sha256_file(args.bpe_model),
            "parameters": 0,
            "device": "cpu",
            "threads": torch.get_num_threads(),
            **input_hashes(args.shar_dir, args.fields),
        },
        decode=lambda: recognise(
            model,
            open_shar(args.shar_dir, model.fields),
            tokenizer,
            options,
            total=total,
            codecs=load_codecs(args.shar_dir, model.fields),
        ),
        force=args.force,
    )


def main() -> None:
    setup_logging()
    with exit_on_error("decode_fields"):
        result = run(get_parser().parse_args())
    print(result_line(result))


if __name__ == "__main__":
    tune_cpu()
    main()
