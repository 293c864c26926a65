"""Fixtures of real prompts, a small student and its exported files."""

import pytest

from icefall_kd.export.convert import Exporter
from icefall_kd.recognition.options import Chunking

CHUNKINGS = {"full": None, "chunk-16": Chunking(16, 64), "chunk-32": Chunking(32, 64)}


@pytest.fixture(scope="session")
def exported(checkpoint, tmp_path_factory):
    """Kind of encoder -> float32 files of the transducer, in one folder."""
    conversion = Exporter(checkpoint, tmp_path_factory.mktemp("export"))
    return {name: conversion.write(c) for name, c in CHUNKINGS.items()}


@pytest.fixture(scope="session")
def exported_ctc(checkpoint, tmp_path_factory):
    """Kind of encoder -> float32 files of the CTC model, in one folder."""
    conversion = Exporter(checkpoint, tmp_path_factory.mktemp("ctc"), "ctc")
    return {name: conversion.write(c) for name, c in CHUNKINGS.items()}
