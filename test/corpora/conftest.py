"""The folder that is shaped as LibriSpeech."""

import small_librispeech

librispeech = small_librispeech.librispeech  # a fixture
