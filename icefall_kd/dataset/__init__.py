"""Batches for training: stream of cuts, sampler, features, fields."""
