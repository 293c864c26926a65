"""Recognise Shar sets, align transcripts, score hypotheses and reuse results."""
