"""Shared code: files, commands, configuration, processes, frames of batches."""
