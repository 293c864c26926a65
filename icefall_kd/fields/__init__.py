"""Fields: the outputs of teachers on disk, next to the audio in Lhotse Shar."""

from icefall_kd.fields.codec_files import load_decoder

__all__ = ["load_decoder"]
