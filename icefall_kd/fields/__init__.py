"""Fields: the outputs of teachers on disk, beside the audio in Lhotse Shar."""
