"""Batches for training: streams of cuts, sampling, collating, fields."""
