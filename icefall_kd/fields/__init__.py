"""Fields: the outputs of teachers on disk, next to the audio in Lhotse Shar."""

from icefall_kd.fields.codecs.storage import load_decoder
from icefall_kd.fields.format import FieldInfo, list_fields, load_field_info

__all__ = ["FieldInfo", "list_fields", "load_decoder", "load_field_info"]
