"""Measure the effect of hotwords on words that are not in the training transcripts.

    OMP_NUM_THREADS=1 python test/bench/hotwords.py --checkpoint exp/pretrained.pt \\
        --shar-dir data/shar/dev [--train data/shar/train] [--scores 0 1.5] \\
        [--others data/shar/unlabelled_en_whisper_base --num-others 0 500]

The hotwords are the words of ``--shar-dir`` that are not in ``--train`` (new words),
and ``--num-others`` words of ``--others`` that are in neither set (distractors).
Prints JSON, for each number of distractors and each score: the WER in %, the share of
new words that are recognised in %, and how often a distractor is recognised.  Choose
the score on dev.  Not collected by pytest.
"""

import argparse
import dataclasses
import json
import random
import tempfile
from collections.abc import Iterable
from pathlib import Path

from lhotse.cut import Cut
from torch import nn

from icefall_kd.core.cpu import tune_cpu
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.decoding import DecodeOptions
from icefall_kd.decoding.hotwords import read_hotwords
from icefall_kd.fields.reader import open_shar
from icefall_kd.recognition.options import Chunking
from icefall_kd.recognition.recognise import load_recogniser, recognise, reference_words
from icefall_kd.recognition.scoring import Recognition, align_words, count_errors


def parse() -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = p.add_argument
    add("--checkpoint", type=Path, required=True)
    add("--shar-dir", type=Path, required=True, help="set to recognise")
    add("--train", type=Path, default="data/shar/train", help="training set")
    add("--others", type=Path, help="Shar folder whose words are distractors")
    add("--num-others", type=int, nargs="+", default=[0], help="distractors in a list")
    add("--scores", type=float, nargs="+", default=[0, 1, 1.5, 2, 3])
    add("--beam", type=int, default=4)
    add("--blank-penalty", type=float, default=0.0)
    add("--chunk-size", type=int, help="stream in chunks of 20 ms frames")
    add("--left-context", type=int, default=128, help="20 ms frames")
    return p.parse_args()


def words_of(cuts: Iterable[Cut]) -> set[str]:
    """Return the set of words in the transcripts."""
    return {word for cut in cuts for word in reference_words(cut)}


def compute_metrics(
    found: list[Recognition], new: set[str], others: set[str]
) -> dict[str, float]:
    """Return WER, share of correct new words, and number of recognised distractors."""
    pairs = [pair for r in found for pair in align_words(r.ref, r.hyp)]
    right = [ref == hyp for ref, hyp in pairs if ref in new]
    return {
        "wer": round(count_errors(found).wer, 2),
        "new_words_right": round(100 * sum(right) / len(right), 1),
        "others_read": sum(hyp in others for _, hyp in pairs),
    }


def recognise_cuts(
    model: nn.Module,
    tokenizer: Tokenizer,
    cuts: list[Cut],
    options: DecodeOptions,
    args: argparse.Namespace,
) -> list[Recognition]:
    """Return the hypotheses of the cuts with these search options."""
    chunking = Chunking(args.chunk_size, args.left_context) if args.chunk_size else None
    options = dataclasses.replace(options, unk_id=tokenizer.unk_id)
    return recognise(model, cuts, tokenizer, options, chunking)[0]


def main() -> None:
    """Recognise the set with each list and each score."""
    args = parse()
    model, tokenizer, _ = load_recogniser(args.checkpoint, "transducer")
    cuts = list(open_shar(args.shar_dir))
    known = words_of(open_shar(args.train))
    new = words_of(cuts) - known
    distractors = (
        sorted(words_of(open_shar(args.others)) - known - new) if args.others else []
    )
    random.Random(0).shuffle(distractors)
    plain = DecodeOptions("modified_beam_search", args.beam, args.blank_penalty)
    results = []
    for count in args.num_others:
        others = set(distractors[:count])
        for bonus in args.scores:
            options = plain
            if bonus:
                with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
                    f.write("\n".join(sorted(new | others)))
                    f.flush()
                    hotwords = read_hotwords(f.name, tokenizer, bonus)
                options = dataclasses.replace(plain, hotwords=hotwords)
            found = recognise_cuts(model, tokenizer, cuts, options, args)
            metrics = compute_metrics(found, new, others)
            results.append({"others": len(others), "score": bonus, **metrics})
    print(json.dumps({"new_words": len(new), "results": results}))


if __name__ == "__main__":
    tune_cpu()
    main()
