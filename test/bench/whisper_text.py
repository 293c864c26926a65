"""How well, and how fast, does Whisper read without padding to 30 s?

    OMP_NUM_THREADS=1 python test/bench/whisper_text.py --model-dir DIR \\
        --shar-dir egs/asterisk/KD/data/shar/dev [--beam 1 5]

Prints JSON: WER and seconds of audio in a second of processor time, one utterance at a
time on one thread, for each beam and

- "completed": silence behind the utterance as the teacher has it, and the encoding of
  silence behind that, as `icefall_kd.teachers.whisper_text` reads;
- "bare": the same without the encoding of silence;
- "padded": silence up to 30 s.

Not collected by pytest.
"""

import argparse
import json
import time
from typing import Dict

import kaldialign
import torch

from icefall_kd.cache.reader import open_shar
from icefall_kd.cache.teach import load_wave, text_of
from icefall_kd.data.normalise import normalise
from icefall_kd.teachers.whisper_text import WhisperText


def measure(reader: WhisperText, cuts: list) -> Dict[str, float]:
    """Return WER in % and times real time over labelled cuts."""
    errors = words = 0
    seconds = 0.0
    for cut in cuts:
        wave, right = load_wave(cut), text_of(cut).split()
        start = time.process_time()
        (said,) = reader.transcribe([wave])
        seconds += time.process_time() - start
        heard = normalise(said.text).split()
        errors += kaldialign.edit_distance(right, heard)["total"]
        words += len(right)
    audio = sum(cut.duration for cut in cuts)
    return {"wer": 100 * errors / words, "times_real_time": audio / seconds}


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", required=True)
    parser.add_argument("--shar-dir", required=True)
    parser.add_argument("--beam", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--compute-type", default="int8")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cuts = [cut for cut in open_shar(args.shar_dir) if cut.duration <= 30]
    rows = []
    for name, context in (("completed", 1.0), ("bare", 1.0), ("padded", 30.0)):
        for beam in args.beam:
            reader = WhisperText(
                args.model_dir,
                beam=beam,
                context=context,
                compute_type=args.compute_type,
                num_threads=1,
            )
            if name == "bare":
                reader.silence = reader.silence[:0]
            rows.append({"reading": name, "beam": beam, **measure(reader, cuts)})
    print(json.dumps({"cuts": len(cuts), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
