"""Teachers: models that compute targets from audio.

To add a teacher, write a subclass of :class:`~icefall_kd.teachers.base.Teacher` and add
it to :data:`TEACHERS` below.  Extraction, fields and terms need no change.  Import
optional packages in the constructor.
"""

from icefall_kd.teachers.base import KINDS, Output, Teacher, TeacherOutput
from icefall_kd.teachers.build import TEACHERS, build_teacher, build_teachers
from icefall_kd.teachers.ensemble import Ensemble
from icefall_kd.teachers.hugging_face import HuggingFace
from icefall_kd.teachers.vocab_teacher import VocabularyTeacher
from icefall_kd.teachers.whisper_ct2 import WhisperCt2
from icefall_kd.teachers.zipformer import ZipformerTeacher

__all__ = [
    "KINDS",
    "TEACHERS",
    "Output",
    "Teacher",
    "TeacherOutput",
    "build_teacher",
    "build_teachers",
]

TEACHERS.update(
    {
        # OpenAI Whisper for CTranslate2: the two models of bin.fetch_teacher, and
        # folders of any size.
        "whisper_tiny_en": WhisperCt2,
        "whisper_base": WhisperCt2,
        "whisper_ct2": WhisperCt2,
        # Encoders of wav2vec 2.0, HuBERT, WavLM, data2vec-audio and Whisper.
        "hugging_face": HuggingFace,
        # A Zipformer of this project or of icefall.
        "zipformer": ZipformerTeacher,
        # Recognisers over other teachers' embeddings, in the student's tokens.
        "vocab_teacher": VocabularyTeacher,
        # The average of several teachers.
        "ensemble": Ensemble,
    }
)
