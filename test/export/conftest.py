"""Exported files of the small student, for both heads."""

import pytest

from icefall_kd.decoding import GREEDY_METHODS, DecodeOptions
from icefall_kd.export.convert import Exporter
from icefall_kd.recognition.options import Chunking

CHUNKINGS = {"full": None, "chunk-16": Chunking(16, 64), "chunk-32": Chunking(32, 64)}


@pytest.fixture(scope="session")
def exported(checkpoint, tmp_path_factory):
    """Kind of encoder -> float32 files of the transducer, in one folder."""
    exporter = Exporter(checkpoint, tmp_path_factory.mktemp("export"))
    return {kind: exporter.write(c) for kind, c in CHUNKINGS.items()}


@pytest.fixture(scope="session")
def exported_ctc(checkpoint, tmp_path_factory):
    """Kind of encoder -> float32 files of the CTC model, in one folder."""
    exporter = Exporter(checkpoint, tmp_path_factory.mktemp("ctc"), "ctc")
    return {kind: exporter.write(c) for kind, c in CHUNKINGS.items()}


@pytest.fixture(params=["transducer", "ctc"])
def head(request):
    """Run a test with each head."""
    return request.param


@pytest.fixture
def exports(head, request):
    """Kind of encoder -> float32 files of ``head``."""
    return request.getfixturevalue("exported_ctc" if head == "ctc" else "exported")


@pytest.fixture
def greedy(head):
    """Greedy search over ``head``."""
    return DecodeOptions(GREEDY_METHODS[head], unk_id=2)
