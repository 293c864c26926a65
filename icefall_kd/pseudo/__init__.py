"""Pseudo-labels: transcripts by a teacher in place of references."""
