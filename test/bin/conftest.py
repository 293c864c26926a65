"""The small Shar with a real teacher's field; real prompts and a small student."""

import real_shar
import real_teachers
from students import (  # noqa: F401, fixtures
    checkpoint,
    cuts,
    parts,
    pristine_student,
    tokenizer,
    waves,
)

tiny_dir, tiny = real_teachers.tiny_dir, real_teachers.tiny  # fixtures
pristine_shar = real_shar.pristine_shar
taught_shar, taught = real_shar.taught_shar, real_shar.taught
