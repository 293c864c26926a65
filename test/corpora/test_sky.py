import io
import json
import struct

import pytest
import soundfile
from recipe import ROOT

from icefall_kd.corpora.sky import encode_wav, read_files, read_texts, unpack_speech

CODES = json.loads((ROOT / "egs/adventure/KD/local/sky_codes.json").read_text())


@pytest.fixture(scope="module")
def files(adventure_packages):
    return read_files(adventure_packages)


def test_the_game_has_a_text_for_each_line(files):
    texts = read_texts(files, CODES)
    assert len(files) == 5097 and len(texts) == 3491
    assert texts[50007] == "I had to INSPECT it."
    assert texts[51689] == "The notice is firmly attached to the elevator..."


@pytest.mark.parametrize("number, seconds", [(50007, 1.14), (51689, 2.86)])
def test_speech_is_a_wav_file_of_its_duration(files, number, seconds):
    wav = encode_wav(unpack_speech(files[number]))
    samples, rate = soundfile.read(io.BytesIO(wav))
    assert rate == 11025 and samples.ndim == 1
    assert len(samples) / rate == pytest.approx(seconds, abs=0.01)
    assert abs(samples.mean()) < 0.02 < samples.std()  # centred: bytes are unsigned


@pytest.mark.slow
def test_every_speech_file_has_the_checksum_of_its_header(files):
    samples = [unpack_speech(files[n]) for n in read_texts(files, CODES)]
    hours = sum(map(len, samples)) / 11025 / 3600
    assert hours == pytest.approx(1.93, abs=0.005)


def test_text_file_is_not_speech(files):
    with pytest.raises(ValueError, match="no header"):
        unpack_speech(files[60600])


def test_missing_file_is_reported_with_the_package(tmp_path):
    (tmp_path / "sky.dnr").write_bytes(struct.pack("<I", 0))
    with pytest.raises(FileNotFoundError, match="no sky.dsk.*beneath-a-steel-sky"):
        read_files(tmp_path)


@pytest.mark.parametrize(
    "count, message", [(2, "sky.dnr.*2 files"), (1, "sky.dsk: file 7 exceeds")]
)
def test_damaged_archive_is_refused(tmp_path, count, message):
    entry = struct.pack("<HIH", 7, 0x64000001, 0)  # 100 bytes from byte 1
    (tmp_path / "sky.dnr").write_bytes(struct.pack("<I", count) + entry)
    (tmp_path / "sky.dsk").write_bytes(bytes(100))
    with pytest.raises(ValueError, match=message):
        read_files(tmp_path)
