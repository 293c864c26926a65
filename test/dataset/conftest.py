"""A small Shar of real prompts, with and without a real teacher's field."""

import real_shar
import real_teachers

tiny_dir, tiny = real_teachers.tiny_dir, real_teachers.tiny  # fixtures
pristine_shar, shar = real_shar.pristine_shar, real_shar.shar
extracted_shar, extracted = real_shar.extracted_shar, real_shar.extracted
