"""Pseudo-labels: transcripts of unlabelled audio by a teacher."""
