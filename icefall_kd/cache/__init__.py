"""What teachers said, on disk: fields beside the audio in lhotse's Shar format."""

from icefall_kd.cache.codec_file import load_decoder
from icefall_kd.cache.field import FieldInfo, list_fields, load_field_info

__all__ = ["FieldInfo", "list_fields", "load_decoder", "load_field_info"]
