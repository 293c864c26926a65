"""Recognise sets and long audio, align, score, and keep results."""
