"""How well, and how fast, does Whisper read without padding, and a student?

    OMP_NUM_THREADS=1 python test/bench/whisper_text.py --model-dir DIR \\
        --shar-dir egs/asterisk/KD/data/shar/dev [--beam 1 5] [--student EXPORT]

Prints JSON: WER and seconds of audio in a second of processor time, one utterance at a
time on one thread, for each beam and

- "completed": silence behind the utterance as the teacher has it, and the encoding of
  silence behind that, as `icefall_kd.teachers.whisper_text` reads;
- "bare": the same without the encoding of silence;
- "padded": silence up to 30 s.

With ``--student``, a folder of bin.export, also what sherpa-onnx makes of it: greedy
search, each of its encoders (``--chunk-size`` names the streaming ones), float32 and
int8.  "mb" is what lies on the disk.

Not collected by pytest.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import kaldialign
import torch
from recipe import load_script

from icefall_kd.data.cuts import transcript
from icefall_kd.decoding import DecodeOptions
from icefall_kd.export.files import ModelFiles
from icefall_kd.export.sherpa import SherpaRecogniser
from icefall_kd.fields.reader import open_shar
from icefall_kd.fields.run_teachers import load_shar_wave
from icefall_kd.recognition.options import Chunking
from icefall_kd.teachers.whisper_text import WhisperText

Read = Callable[[torch.Tensor], str]
MB = 1e6
normalise_prompt = load_script("prepare_asterisk").normalise_prompt


def measure(read: Read, cuts: list) -> dict[str, float]:
    """Return WER in % and times real time over labelled cuts."""
    errors = words = 0
    seconds = 0.0
    for cut in cuts:
        wave, right = load_shar_wave(cut), transcript(cut).split()
        start = time.process_time()
        said = read(wave)
        seconds += time.process_time() - start
        heard = normalise_prompt(said).split()
        errors += kaldialign.edit_distance(right, heard)["total"]
        words += len(right)
    audio = sum(cut.duration for cut in cuts)
    return {"wer": 100 * errors / words, "times_real_time": audio / seconds}


def students(args: argparse.Namespace) -> Iterator[tuple[str, float, Read]]:
    """Yield name, MB and reader of every encoder of an export."""
    chunkings = [None, *(Chunking(n, args.left_context) for n in args.chunk_size)]
    for chunking in chunkings:
        for int8 in (False, True):
            files = ModelFiles.in_folder(args.student, chunking, int8)
            if not files.encoder.is_file():
                continue
            sherpa = SherpaRecogniser(files, DecodeOptions(), 1)
            size = sum(path.stat().st_size for path in files.onnx) / MB
            yield (
                files.encoder.name,
                size,
                lambda w, r=sherpa: r.decode([w.numpy()])[0].text,
            )


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", required=True)
    parser.add_argument("--shar-dir", required=True)
    parser.add_argument("--beam", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--compute-type", default="int8")
    parser.add_argument("--student", type=Path, help="folder of bin.export")
    parser.add_argument("--chunk-size", type=int, nargs="*", default=[16])
    parser.add_argument("--left-context", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cuts = [cut for cut in open_shar(args.shar_dir) if cut.duration <= 30]
    whisper = (Path(args.model_dir) / "model.bin").stat().st_size
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
            found = measure(lambda w, r=reader: r.transcribe([w])[0].text, cuts)
            rows.append({"reading": name, "beam": beam, "mb": whisper / MB, **found})
    for name, size, read in students(args) if args.student else ():
        rows.append({"reading": name, "mb": size, **measure(read, cuts)})
    print(json.dumps({"cuts": len(cuts), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
