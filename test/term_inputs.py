"""Shapes, fields and batches for the tests of terms."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from icefall_kd.core.config import ModelConfig, ZipformerConfig
from icefall_kd.core.frames import pack_path, pack_topk

LENS = [23, 13]  # student frames of two utterances of 1 s and 0.6 s
STACKS = (4, 5)  # dimensions of the stacks
DIM = max(STACKS)  # dimension of the encoder's output
VOCAB = 9
K = 4  # tokens stored in a frame of a distribution
TOKENS = [[3, 1, 4], [5, 5]]
MODEL = ModelConfig(
    encoder=ZipformerConfig(
        downsampling_factor=(1, 2),
        num_encoder_layers=(1,),
        encoder_dim=STACKS,
        encoder_unmasked_dim=(4,),
        feedforward_dim=(8,),
        num_heads=(1,),
        cnn_module_kernel=(7,),
    ),
    vocab_size=VOCAB,
)
SLOW_LOSSES = {
    "l1": lambda s, t: np.abs(s - t).mean(),
    "l2": lambda s, t: ((s - t) ** 2).mean(),
    "cosine": lambda s, t: 1 - s @ t / np.sqrt((s @ s) * (t @ t)),
}


def build(term, student, infos):
    """Return the term, and a copy of the student that has the term's heads."""
    torch.manual_seed(2)
    head = term.build_heads(MODEL, infos)
    heads = nn.ModuleDict({term.name: head} if head is not None else {}).eval()
    return term, dataclasses.replace(student, heads=heads)


def embedding_infos(dims):
    """Return name -> information on an embedding field with random statistics."""
    rng = np.random.default_rng(0)
    return {
        name: SimpleNamespace(
            name=name,
            kind="embedding",
            mean=rng.normal(size=dim).tolist(),
            std=rng.uniform(1, 3, dim).tolist(),
        )
        for name, dim in dims.items()
    }


def embedding_field(dim, frame_shift, lens):
    """Return random embeddings of two utterances, as in a batch."""
    x = torch.randn(2, max(lens), dim)
    x[1, lens[1] :] = 0
    return {"x": x, "lens": torch.tensor(lens), "frame_shift": frame_shift}


def remove_target(field, row):
    """Remove the target of utterance ``row`` from a field of a batch, in place."""
    field["lens"][row] = 0
    field["x"][row] = 0.0


def without_targets(fields):
    """Return fields of these names for a batch in which no utterance has a target."""
    empty = {"x": torch.zeros(2, 0, 0), "lens": torch.zeros(2).long()}
    return {name: {**empty, "frame_shift": 0.0} for name in fields}


def reverse_batch(student, batch):
    """Return student and batch with the utterances in reverse order."""
    fields = {
        name: {**f, "x": f["x"].flip(0), "lens": f["lens"].flip(0)}
        for name, f in batch["fields"].items()
    }
    flipped = {**batch, "fields": fields, "tokens": TOKENS[::-1]}
    if "feature_lens" in batch:
        flipped["feature_lens"] = batch["feature_lens"].flip(0)
    return (
        dataclasses.replace(
            student,
            encoder_out=student.encoder_out.flip(0),
            lens=student.lens.flip(0),
            stacks=tuple(s.flip(0) for s in student.stacks),
        ),
        flipped,
    )


def ctc_field(seed, lens=LENS):
    """Return random CTC distributions of two utterances, as in a batch."""
    torch.manual_seed(seed)
    x = pack_topk((3 * torch.randn(2, max(lens), VOCAB)).log_softmax(-1), K)
    for n, frames in enumerate(lens):
        x[n, frames:] = 0
    return {"x": x, "lens": torch.tensor(lens), "frame_shift": 0.04}


def path_field(seed):
    """Return distributions on paths that emit two or three tokens."""
    field = ctc_field(seed)
    emitted = torch.zeros(2, max(LENS), dtype=torch.int64)
    emitted[0, [2, 9, 22]] = torch.tensor([3, 1, 4])
    emitted[1, [0, 5]] = torch.tensor([5, 5])
    return {**field, "x": pack_path(emitted, field["x"])}


def distribution_batch():
    """Return a batch with the fields "first", "second" (ctc) and "path"."""
    fields = {"first": ctc_field(1), "second": ctc_field(2), "path": path_field(3)}
    return {"tokens": list(TOKENS), "fields": fields}


def distribution_infos():
    """Return the information on the fields of :func:`distribution_batch`."""
    kinds = {"first": "ctc", "second": "ctc", "path": "path"}
    return {
        name: SimpleNamespace(name=name, kind=kind, dim=2 * K + 1 + (kind == "path"))
        for name, kind in kinds.items()
    }
