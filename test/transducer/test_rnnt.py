"""The PyTorch backend of the pruned RNN-T: k2's values, gradients and ranges."""

import subprocess
import sys

import pytest
import torch

from icefall_kd.transducer import rnnt

FRAMES, LABELS = [14, 2, 7, 14, 9], [6, 1, 6, 1, 3]


def make_lattice(seed=0):
    """Return px, py and boundary of random scores, with -inf after the last frame."""
    torch.manual_seed(seed)
    frames, labels = torch.tensor(FRAMES), torch.tensor(LABELS)
    size, t, u = len(FRAMES), max(FRAMES), max(LABELS)
    px = 3 * torch.randn(size, u, t + 1, dtype=torch.float64)
    py = 3 * torch.randn(size, u + 1, t, dtype=torch.float64)
    end = frames.view(-1, 1, 1).expand(-1, u, 1)
    boundary = torch.stack([0 * labels, 0 * labels, labels, frames], dim=1)
    return px.scatter(2, end, float("-inf")), py, boundary


def with_gradients(module, px, py, boundary):
    """Return the scores, occupancies and gradients of a module."""
    px, py = px.clone().requires_grad_(), py.clone().requires_grad_()
    scores, arcs = module.mutual_information_recursion(
        px, py, boundary, return_grad=True
    )
    weights = torch.arange(1.0, len(scores) + 1, dtype=torch.float64)
    (scores * weights).sum().backward()
    return [scores.detach(), *arcs, px.grad, py.grad]


@pytest.mark.parametrize("seed", range(3))
def test_scores_occupancies_and_gradients_equal_k2(seed):
    k2 = pytest.importorskip("k2")
    lattice = make_lattice(seed)
    pairs = zip(with_gradients(rnnt, *lattice), with_gradients(k2, *lattice))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [2, 3, 5, 7, 20])
def test_ranges_and_pruned_losses_equal_k2(size):
    k2 = pytest.importorskip("k2")
    px, py, boundary = make_lattice(size)
    _, arcs = k2.mutual_information_recursion(px, py, boundary, return_grad=True)
    ranges = rnnt.get_rnnt_prune_ranges(*arcs, boundary, size)
    assert ranges.equal(k2.get_rnnt_prune_ranges(*arcs, boundary, size))
    symbols = torch.randint(1, 8, (len(FRAMES), max(LABELS)))
    shape = (*ranges.shape, 8)
    logits = torch.randn(shape, dtype=torch.float64)
    found = []
    for module in (rnnt, k2):
        x = logits.clone().requires_grad_()
        loss = module.rnnt_loss_pruned(
            x, symbols, ranges, 0, boundary, reduction="none"
        )
        (loss * torch.arange(1.0, 6.0)).sum().backward()
        found.append((loss.detach(), x.grad))
        total = module.rnnt_loss_pruned(
            x, symbols, ranges, 0, boundary, reduction="sum"
        )
        torch.testing.assert_close(total, loss.sum())
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_each_alignment_has_one_arc_for_each_label_and_each_frame():
    px, py, boundary = make_lattice()
    _, (px_grad, py_grad) = rnnt.mutual_information_recursion(px, py, boundary)
    for n, (frames, labels) in enumerate(zip(FRAMES, LABELS)):
        of_labels, of_frames = px_grad[n].sum(1), py_grad[n].sum(0)
        assert of_labels.tolist() == pytest.approx([1] * labels + [0] * (6 - labels))
        assert of_frames.tolist() == pytest.approx([1] * frames + [0] * (14 - frames))


def test_padding_of_any_value_changes_nothing():
    px, py, boundary = make_lattice()
    before = with_gradients(rnnt, px, py, boundary)
    for n, (frames, labels) in enumerate(zip(FRAMES, LABELS)):
        for x in (px[n, labels:], px[n, :, frames:], py[n, labels + 1 :]):
            x.fill_(float("nan"))
        py[n, :, frames:] = float("nan")
    for a, b in zip(before, with_gradients(rnnt, px, py, boundary)):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_auto_is_torch_without_k2_or_without_its_support_of_the_device():
    code = """if True:
        import sys, torch
        from types import SimpleNamespace
        sys.modules["k2"] = {k2}
        from icefall_kd.transducer import rnnt
        cpu, cuda = torch.device("cpu"), torch.device("cuda")
        assert rnnt.load_backend("torch", cpu) is rnnt
        assert rnnt.load_backend("auto", cuda) is rnnt
        assert rnnt.load_backend("auto", cpu) is (sys.modules["k2"] or rnnt)
        assert rnnt.load_backend("k2", cuda) is sys.modules["k2"]
    """
    for k2 in ("None", "SimpleNamespace(with_cuda=False)"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(k2=k2)], capture_output=True, text=True
        )
        assert ("ModuleNotFoundError: import of k2" in done.stderr) == (k2 == "None")
        assert done.returncode == (k2 == "None")
