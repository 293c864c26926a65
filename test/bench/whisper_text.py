"""Measure WER and speed of Whisper without padding to 30 s, and of a student.

    OMP_NUM_THREADS=1 python test/bench/whisper_text.py --model-dir DIR \\
        --shar-dir egs/asterisk/KD/data/shar/dev [--beam 1 5] [--student EXPORT]

Prints JSON: WER in % and seconds of audio per second of CPU time, one utterance at a
time on one thread, for each beam and

- "completed": the encoding is completed with that of silence, as in
  `icefall_kd.teachers.whisper_ct2`;
- "bare": the same without the encoding of silence;
- "padded": silence up to 30 s.

``--student`` adds the models of bin.export, run by sherpa-onnx with greedy search: each
encoder (``--chunk-size`` selects the streaming ones), float32 and int8.  "mb" is the
size of the files in MB.

Not collected by pytest.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kaldialign
import torch
from recipe import load_script

from icefall_kd.data.cuts import get_transcript
from icefall_kd.decoding import DecodeOptions
from icefall_kd.export.files import ModelFiles
from icefall_kd.export.sherpa import SherpaRecogniser
from icefall_kd.fields.reader import open_shar
from icefall_kd.fields.run_teachers import load_shar_wave
from icefall_kd.recognition.options import Chunking
from icefall_kd.teachers.whisper_ct2 import WhisperText

Transcribe = Callable[[torch.Tensor], str]
MB = 1e6
normalise_prompt = load_script("prepare_asterisk").normalise_prompt


def measure(transcribe: Transcribe, cuts: list) -> dict[str, float]:
    """Return the WER in %, and seconds of audio per second of CPU time."""
    errors = words = 0
    seconds = 0.0
    for cut in cuts:
        wave, reference = load_shar_wave(cut), get_transcript(cut).split()
        start = time.process_time()
        text = transcribe(wave)
        seconds += time.process_time() - start
        hypothesis = normalise_prompt(text).split()
        errors += kaldialign.edit_distance(reference, hypothesis)["total"]
        words += len(reference)
    audio = sum(cut.duration for cut in cuts)
    return {"wer": 100 * errors / words, "times_real_time": audio / seconds}


def load_students(args: argparse.Namespace) -> Iterator[tuple[str, float, Transcribe]]:
    """Yield file name, size in MB and recogniser of each exported encoder."""
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
            model = WhisperText(
                args.model_dir,
                beam=beam,
                context=context,
                compute_type=args.compute_type,
                num_threads=1,
            )
            if name == "bare":
                model.silence = model.silence[:0]
            found = measure(lambda w, m=model: m.transcribe([w])[0].text, cuts)
            rows.append({"model": name, "beam": beam, "mb": whisper / MB, **found})
    for name, size, transcribe in load_students(args) if args.student else ():
        rows.append({"model": name, "mb": size, **measure(transcribe, cuts)})
    print(json.dumps({"cuts": len(cuts), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
