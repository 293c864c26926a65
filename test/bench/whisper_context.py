"""Measure how much silence Whisper's encoder needs after an utterance.

    python test/bench/whisper_context.py --model-dir DIR --shar-dir DIR [DIR ...]

Compares the embeddings of utterances followed by some seconds of silence (the context)
with those of utterances padded to 30 s, as in Whisper's training.  Prints JSON for each
context: the mean cosine over all frames, over the last 0.5 s of each utterance, over
the other frames, and of the worst utterance; CPU seconds per second of audio.
"""

import argparse
import json
import time

import torch

from icefall_kd.fields.reader import open_shar
from icefall_kd.teachers import build_teacher

TAIL = 25  # frames, the last 0.5 s


def compare(reference: list[torch.Tensor], found: list[torch.Tensor]) -> dict:
    """Return mean cosines between the embeddings, (T, D) float32, of each utterance."""
    cosine = [torch.cosine_similarity(a, b, dim=1) for a, b in zip(reference, found)]
    return {
        "cosine": torch.cat(cosine).mean().item(),
        "cosine_last_half_second": torch.cat([c[-TAIL:] for c in cosine]).mean().item(),
        "cosine_before": torch.cat([c[:-TAIL] for c in cosine]).mean().item(),
        "lowest_utterance": min(c.mean().item() for c in cosine),
    }


def embed(teacher, waves: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the (T, D) embeddings of all waves."""
    (output,) = teacher.forward(
        torch.nn.utils.rnn.pad_sequence(waves, batch_first=True),
        torch.tensor([len(w) for w in waves]),
    ).values()
    return [x[:n] for x, n in zip(output.x, output.lens.tolist())]


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shar-dir", nargs="+", required=True)
    parser.add_argument("--model-dir", required=True)
    parser.add_argument("--limit", type=int, default=1000, help="utterances")
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--context", type=float, nargs="+")
    parser.add_argument("--bucket", type=float, default=0.02)
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    waves = []
    for shar_dir in args.shar_dir:
        for cut in open_shar(shar_dir):
            if cut.duration <= 25 and len(waves) < args.limit:
                waves.append(torch.from_numpy(cut.load_audio()[0]))
    seconds = sum(len(w) for w in waves) / 16000

    def run(context: float, compute_type: str) -> tuple:
        teacher = build_teacher(
            "whisper_ct2",
            args.model_dir,
            context=context,
            bucket=args.bucket,
            compute_type=compute_type,
            num_threads=args.num_threads,
        )
        start = time.process_time()
        found = embed(teacher, waves)
        return found, (time.process_time() - start) / seconds

    reference, cost = run(30.0, "float32")
    rows = [{"context": "30 s window", "cpu_per_second": cost}]
    for context in args.context or (0.0, 0.25, 0.5, 1.0, 2.0, 4.0):
        for compute_type in ("float32", "int8"):
            found, cost = run(context, compute_type)
            row = {"context": context, "compute_type": compute_type}
            row.update(compare(reference, found), cpu_per_second=cost)
            rows.append(row)
    result = {"utterances": len(waves), "seconds": seconds, "rows": rows}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
