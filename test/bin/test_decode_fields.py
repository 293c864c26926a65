"""bin.decode_fields on extracted distributions of real prompts."""

import ast
import itertools
import json
import re

import numpy as np
import pytest
import torch
from shar_files import copy_shar
from students import call

from icefall_kd.bin import decode_fields
from icefall_kd.core.frames import pack_topk
from icefall_kd.data.shar import write_shar
from icefall_kd.fields.codecs.storage import load_codec
from icefall_kd.fields.extract import extract
from icefall_kd.fields.format import info_path, load_field_info
from icefall_kd.fields.reader import load_field, open_shar
from icefall_kd.recognition.fields import MeanDistribution, StoredDistributions
from icefall_kd.teachers import build_teacher

GREEDY = ("--method", "ctc_greedy_search")


@pytest.fixture(scope="module")
def shar(checkpoint, cuts, tmp_path_factory):
    """Six prompts with distributions of the student, top-16 and top-2."""
    folder = tmp_path_factory.mktemp("shar") / "own"
    write_shar(cuts[:6], folder)
    for name, topk in (("student", 16), ("student_best", 2)):
        teacher = build_teacher(
            "zipformer", checkpoint, name, outputs=["ctc", "embedding"], topk=topk
        )
        extract(folder, [teacher])
    return folder


def best_words(shar, tokenizer):
    """Return cut id -> words of the best stored tokens, with <unk> as blank."""
    codec = load_codec(shar, load_field_info(shar, "student_ctc"))
    found = {}
    for cut in open_shar(shar, ["student_ctc"]):
        best = []
        for frame in load_field(cut, "student_ctc", codec):
            probs = dict(zip(frame[:16].astype(int), np.exp(frame[16:32])))
            probs[0] = probs.get(0, 0.0) + probs.pop(tokenizer.unk_id, 0.0)
            best.append(max(probs, key=probs.get))
        tokens = [int(token) for token, _ in itertools.groupby(best) if token]
        found[cut.id] = tokenizer.decode(tokens).split()
    return found


@pytest.fixture
def call_on(shar, tokenizer, tmp_path):
    model = tmp_path / "bpe.model"
    model.write_bytes(tokenizer.model_bytes)
    options = ["--bpe-model", model, "--out-dir", tmp_path / "decode"]

    def run(*fields, folder=shar, more=GREEDY):
        return call(
            decode_fields, "--shar-dir", folder, *options, "--fields", *fields, *more
        )

    return run


def test_best_stored_tokens_are_decoded(call_on, shar, tokenizer, tmp_path):
    result = call_on("student_ctc")
    assert (result["engine"], result["checkpoint"]) == ("stored fields", "student_ctc")
    recogs = (tmp_path / "decode/recogs-own-ctc_greedy_search.txt").read_text()
    found = re.findall(r"^(\S+):\thyp=(.*)$", recogs, re.M)
    expected = best_words(shar, tokenizer)
    assert {name: ast.literal_eval(hyp) for name, hyp in found} == expected
    assert sum(map(len, expected.values())) > 20
    assert call_on("student_ctc") == result  # reused
    both = call_on("student_ctc", "student_best_ctc")  # two fields
    assert both["checkpoint"] == "student_ctc+student_best_ctc"
    assert both["errors"] == result["errors"]
    assert call_on("student_ctc", more=("--beam", "2"))["beam"] == 2


def test_changed_field_is_decoded_again(call_on, shar, tmp_path):
    folder = copy_shar(shar, tmp_path / "own")
    first = call_on("student_ctc", folder=folder)
    assert call_on("student_ctc", folder=folder)["rtf"] == first["rtf"]
    state = json.loads(info_path(folder, "student_ctc").read_text())
    state["content_sha256"] = "0" * 64  # as another extraction writes it
    info_path(folder, "student_ctc").write_text(json.dumps(state))
    again = call_on("student_ctc", folder=folder)
    assert again["fields_sha256"] != first["fields_sha256"]


def test_head_averages_distributions():
    torch.manual_seed(0)
    probs = torch.rand(2, 1, 3, 5).softmax(dim=-1)
    frames = torch.cat([pack_topk(p.log(), 5) for p in probs], dim=-1)
    head = MeanDistribution([11, 11], 5)
    assert torch.allclose(head(frames).exp(), probs.mean(dim=0), atol=1e-6)
    assert int(head(frames).argmax()) == int(probs.mean(dim=0).argmax())


def test_shortest_field_gives_number_of_frames():
    def field(frames, shift=0.04):
        x = torch.rand(1, frames, 3)
        return {"x": x, "lens": torch.tensor([frames]), "frame_shift": shift}

    model = StoredDistributions(["a", "b"], [3, 3], 5)
    x, lens = model.get_inputs({"fields": {"a": field(7), "b": field(6)}})
    assert x.shape == (1, 6, 6) and lens.tolist() == [6]
    with pytest.raises(ValueError, match=r"'a', 'b'.*shifts \[0.02, 0.04\]"):
        model.get_inputs({"fields": {"a": field(7), "b": field(6, 0.02)}})


def test_invalid_fields_are_refused(call_on, shar, cuts, tmp_path):
    with pytest.raises(ValueError, match="'student' is of kind 'embedding', not 'ctc'"):
        call_on("student")
    with pytest.raises(FileNotFoundError, match="nobody"):
        call_on("nobody_ctc")
    with pytest.raises(FileNotFoundError, match="none.model"):
        call_on("student_ctc", more=("--bpe-model", tmp_path / "none.model"))
    other = copy_shar(shar, tmp_path / "other")
    info = info_path(other, "student_ctc")
    info.write_text(info.read_text().replace('"vocab_sha256": "', '"vocab_sha256": "0'))
    with pytest.raises(ValueError, match="BPE model 0"):
        call_on("student_ctc", folder=other)
