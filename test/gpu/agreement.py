"""Compare values and gradients on the CPU with those on the GPU."""

import argparse
import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import students
import torch
from term_inputs import (
    DIM,
    LENS,
    MODEL,
    STACKS,
    TOKENS,
    VOCAB,
    distribution_batch,
    distribution_infos,
    embedding_field,
    embedding_infos,
)
from torch import Tensor, nn

from icefall_kd.core.frames import move_to_device
from icefall_kd.distill import TERMS
from icefall_kd.distill.term import StudentOutput
from icefall_kd.training.optim import ScaledAdam
from icefall_kd.transducer.bigram import make_bigram_table, save_bigram
from icefall_kd.transducer.model import build_model
from icefall_kd.transducer.parity import compare_rnnt, load_arrays

LIMIT = 1e-4  # of the largest relative difference in float32
RNNT = Path(__file__).parents[1] / "zipformer/data/rnnt.npz"
OPTIONS = {
    "transducer": dict(backend="torch", warm_steps=0),
    "ctc": {},
    "embedding": dict(teachers={"near": 0.7, "far": 0.3}),
    "hidden": dict(stacks={0: "far", -1: "near"}),
    "one_best": dict(teacher="path"),
    "essence": dict(teachers=("first", "second"), size=3),
    "inter_ctc": dict(stacks=(0, -1), teacher="first"),
    "lfmmi": dict(teacher="first"),
}


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value."""
    found, expected = found.detach().double().cpu(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp(1e-6))


def check_limit(differences: dict[str, float], limit: float = LIMIT) -> None:
    """Raise an AssertionError that names differences above a limit or NaN."""
    wrong = {name: x for name, x in differences.items() if not x <= limit}
    assert not wrong, f"above {limit}: {wrong}"


def exact_float32() -> None:
    """Switch off TF32, which rounds the inputs of products to 10 bits."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def compare_rnnt_with_k2(args: argparse.Namespace) -> dict:
    """Compare the PyTorch backend in float64 with stored values of k2."""
    arrays = load_arrays(RNNT)
    device = torch.device(args.device)
    found = {d.name: d.largest for d in compare_rnnt(arrays, "torch", device)}
    check_limit(found, 1e-6)
    return {"largest": max(found.values())}


def make_inputs(device: str) -> tuple[StudentOutput, dict, dict]:
    """Return a student's output, a batch with all fields, and the fields' infos."""
    torch.manual_seed(1)
    fields = {
        "near": embedding_field(5, 0.02, [51, 31]),
        "far": embedding_field(7, 0.04, [26, 15]),
    }
    batch = distribution_batch()
    batch["fields"].update(fields)
    lens = torch.tensor([98, 59])  # frames of 10 ms
    batch |= {"features": torch.zeros(2, 98, 80), "feature_lens": lens}
    batch |= {
        "tokens": TOKENS,
        "cuts": [SimpleNamespace(id="a"), SimpleNamespace(id="b")],
    }
    infos = {**distribution_infos(), **embedding_infos({"near": 5, "far": 7})}
    torch.manual_seed(2)
    leaf = [torch.randn(2, max(LENS), DIM)]
    leaf += [torch.randn(2, 2 * max(LENS) - 1, dim) for dim in STACKS]
    leaf = [x.to(device).requires_grad_() for x in leaf]
    student = StudentOutput(
        leaf[0],
        torch.tensor(LENS, device=device),
        students.model_without_encoder(VOCAB, DIM).to(device),
        nn.ModuleDict(),
        chunk_size=16,
        stacks=tuple(leaf[1:]),
    )
    return student, move_to_device(batch, torch.device(device)), infos


def compute_term(name: str, options: dict, device: str, dtype=None) -> list[Tensor]:
    """Return a term's value and all gradients."""
    student, batch, infos = make_inputs(device)
    term = TERMS[name](TERMS[name].options(**options))
    torch.manual_seed(3)
    head = term.build_heads(MODEL, infos)
    heads = nn.ModuleDict({name: head} if head is not None else {}).eval().to(device)
    student = dataclasses.replace(student, heads=heads)
    with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
        value = term(student, batch, 10).sum
    value.backward()
    leaves = [student.encoder_out, *student.stacks, *student.model.parameters()]
    grads = [p.grad for p in (*leaves, *heads.parameters()) if p.grad is not None]
    return [value, *grads]


def compare_terms(args: argparse.Namespace) -> dict:
    """Compare all terms in float32; state the differences in bfloat16."""
    exact_float32()
    assert set(OPTIONS) == set(TERMS)
    bigram = args.out / "bigram.pt"
    save_bigram(make_bigram_table([[1, 2, 3], [4, 4], [5, 8, 1]], VOCAB), "", bigram)
    exact, half = {}, {}
    for name, options in OPTIONS.items():
        if name == "lfmmi":
            options = {**options, "bigram": str(bigram)}
        expected = compute_term(name, options, "cpu")
        for found, dtype in ((exact, None), (half, torch.bfloat16)):
            values = compute_term(name, options, args.device, dtype)
            pairs = list(zip(values, expected))
            assert len(values) == len(expected)
            found[name] = max(relative_difference(*pair) for pair in pairs)
    check_limit(exact)
    return {"float32": exact, "bfloat16": half}


def compare_student(args: argparse.Namespace) -> dict:
    """Compare output and gradients of a small Zipformer without random layers."""
    exact_float32()
    torch.manual_seed(0)
    on_cpu = build_model(students.STUDENT).eval()
    x, lens = torch.randn(2, 120, 80), torch.tensor([120, 90])
    found = []
    for model, device in ((copy.deepcopy(on_cpu), args.device), (on_cpu, "cpu")):
        model.to(device)
        out, out_lens = model.forward_encoder(x.to(device), lens.to(device))
        weights = torch.linspace(-1, 1, out.size(2), device=device)
        valid = torch.arange(out.size(1), device=device) < out_lens.unsqueeze(1)
        ((out * weights).sum(2) * valid).sum().backward()
        found.append([out, *_encoder_gradients(model)])
    differences = [relative_difference(*pair) for pair in zip(*found)]
    assert len(differences) > 50
    check_limit({"output": differences[0]})
    check_limit({"gradients": max(differences[1:])}, 10 * LIMIT)
    return {"output": differences[0], "gradients": max(differences[1:])}


def _encoder_gradients(model: nn.Module) -> Iterator[Tensor]:
    for part in (model.encoder_embed, model.encoder):
        yield from (p.grad for p in part.parameters() if p.grad is not None)


def compare_optimiser(args: argparse.Namespace) -> dict:
    """Compare 30 updates of ScaledAdam on equal gradients."""
    found = []
    for device in (args.device, "cpu"):
        generator = torch.Generator().manual_seed(0)
        shapes = [(4, 3), (5,), (), (2, 3, 4)]
        params = [torch.randn(s, generator=generator) for s in shapes]
        params = [nn.Parameter(p.to(device)) for p in params]
        optimizer = ScaledAdam([{"params": params}], 0.05, 2.0)
        for _ in range(30):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator).to(device)
            optimizer.step()
        found.append(params)
    difference = max(relative_difference(*pair) for pair in zip(*found))
    check_limit({"parameters": difference})
    return {"parameters": difference}
