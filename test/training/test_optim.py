"""ScaledAdam against a slow reference; Eden against its formula."""

import copy

import pytest
import torch
from torch import nn

from icefall_kd.training.optim import Eden, ScaledAdam


class SlowScaledAdam:
    """Reference implementation: one parameter at a time, in double precision."""

    def __init__(self, params, lr, clipping_scale=None, period=100):
        self.params = list(params)
        self.lr, self.clipping_scale, self.period = lr, clipping_scale, period
        self.step_count, self.norms, self.threshold = 0, {}, None
        self.v = [torch.zeros_like(p) for p in self.params]
        self.delta = [torch.zeros_like(p) for p in self.params]
        self.rms = [self.size(p) for p in self.params]
        self.slopes = [[] for _ in self.params]
        self.size_v = [0.0 for _ in self.params]

    @staticmethod
    def size(p):
        return float((p.detach() ** 2).mean().sqrt())

    def clip(self):
        t = self.step_count
        if self.clipping_scale is None or t == 0:
            return 1.0
        norm = 0.0
        for p, rms in zip(self.params, self.rms):
            weight = 0.1 if p.numel() == 1 else rms
            norm += float(((p.grad * weight) ** 2).sum())
        self.norms[t % self.period] = norm**0.5
        early = t in (10, 20, 40) and t < self.period
        if early or t % self.period == 0:
            # Before the first full period, unused slots count as zeros.
            recent = sorted(
                [*self.norms.values()] + [0.0] * (self.period - len(self.norms))
            )
            recent = recent[-t:] if early else recent
            median = recent[len(recent) // 4 * 2]
            self.threshold = self.clipping_scale * median * (2.0 if early else 1.0)
        if self.threshold is None:
            return 1.0
        return min(1.0, self.threshold / norm**0.5)

    @torch.no_grad()
    def step(self):
        t, clip = self.step_count, self.clip()
        for i, p in enumerate(self.params):
            g = p.grad * clip
            self.v[i] = 0.98 * self.v[i] + 0.02 * g * g
            correction = 1 - 0.98 ** (t + 1)
            v = self.v[i] / correction if correction < 0.99 else self.v[i]
            step = -self.lr * g / (v.sqrt() + 1e-8)
            if p.numel() == 1:
                step = 0.1 * step
            else:
                self.slopes[i].append(float((p * g).sum()))
                resize = 0.0
                if t % 4 == 3:
                    self.rms[i] = self.size(p)
                    resize = self.resize(i, (t + 1) // 4)
                step = step * max(self.rms[i], 1e-5) + p * resize
            self.delta[i] = 0.9 * self.delta[i] + 0.1 * step
            p += self.delta[i]
            if p.numel() == 1:
                p.clamp_(-10, 10)
        self.step_count += 1

    def resize(self, i, count):
        slopes, self.slopes[i] = torch.tensor(self.slopes[i]).double(), []
        beta = 0.98**4
        self.size_v[i] = beta * self.size_v[i] + (1 - beta) * float((slopes**2).mean())
        step = -0.1 * self.lr * (1 - beta**count) ** 0.5 * float(slopes.sum())
        step = max(-0.1, min(0.1, step / (self.size_v[i] ** 0.5 + 1e-8)))
        return min(step, (3.0 - self.rms[i]) / self.rms[i])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 1))
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return self.body(x) * self.scale


def batch(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    return x * (30.0 if step % 13 == 5 else 1.0), x.sum(1, keepdim=True).sin()


def loss_of(model, step):
    x, target = batch(step)
    return ((model(x) - target) ** 2).mean()


@pytest.mark.parametrize("clipping_scale", [None, 2.0])
def test_steps_equal_those_of_the_slow_reference(clipping_scale):
    torch.manual_seed(0)
    ours = Net().double()
    slow = copy.deepcopy(ours)
    fast = ScaledAdam(
        ours.parameters(),
        lr=0.04,
        clipping_scale=clipping_scale,
        clipping_update_period=50,
    )
    reference = SlowScaledAdam(slow.parameters(), 0.04, clipping_scale, period=50)
    for step in range(130):
        for model, optimizer in ((ours, fast), (slow, reference)):
            for p in model.parameters():
                p.grad = None
            loss_of(model, step).backward()
            optimizer.step()
        for a, b in zip(ours.parameters(), slow.parameters()):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def train(model, optimizer, scheduler, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        scheduler.step_batch()


def make(lr=0.04):
    torch.manual_seed(0)
    model = Net().double()
    optimizer = ScaledAdam(
        [
            {"params": list(model.body.parameters())},
            {"params": [model.scale], "lr": lr / 2},
        ],
        lr=lr,
        clipping_scale=2.0,
        clipping_update_period=20,
    )
    return model, optimizer, Eden(optimizer, 30, 2, warmup_batches=10)


def test_resuming_equals_continuing(tmp_path):
    model, optimizer, scheduler = make()
    train(model, optimizer, scheduler, range(37))
    torch.save(
        [model.state_dict(), optimizer.state_dict(), scheduler.state_dict()],
        tmp_path / "a.pt",
    )
    train(model, optimizer, scheduler, range(37, 75))

    resumed, optimizer2, scheduler2 = make()
    states = torch.load(tmp_path / "a.pt")
    for thing, state in zip((resumed, optimizer2, scheduler2), states):
        thing.load_state_dict(state)
    train(resumed, optimizer2, scheduler2, range(37, 75))
    for a, b in zip(model.parameters(), resumed.parameters()):
        assert torch.equal(a, b)


def test_the_loss_falls():
    model, optimizer, _ = make()
    eden = Eden(optimizer, 1000, 100, warmup_batches=10)
    steps = [step for step in range(500) if step % 13 != 5]  # without the outliers
    before = sum(float(loss_of(model, step)) for step in steps[:50])
    train(model, optimizer, eden, steps * 2)
    after = sum(float(loss_of(model, step)) for step in steps[:50])
    assert after < 0.5 * before


def test_a_nonfinite_gradient_moves_only_by_momentum():
    model, optimizer, scheduler = make()
    train(model, optimizer, scheduler, range(25))
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
    state = optimizer.state[model.scale]
    assert state["exp_avg_sq"].isfinite().all() and state["delta"].isfinite().all()


def test_nonfinite_gradients_in_most_steps_are_an_error():
    model, optimizer, _ = make()
    with pytest.raises(RuntimeError, match="optim.base_lr"):
        for _ in range(12):
            for p in model.parameters():
                p.grad = torch.full_like(p, float("inf"))
            optimizer.step()


def test_a_parameter_without_gradient_counts_as_zero():
    torch.manual_seed(0)
    a, b = Net(), Net()
    b.load_state_dict(a.state_dict())
    for model, missing in ((a, None), (b, torch.zeros(9, 6))):
        optimizer = ScaledAdam(model.parameters(), lr=0.1)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        model.body[0].weight.grad = missing
        optimizer.step()
    for p, q in zip(a.parameters(), b.parameters()):
        assert torch.equal(p, q)


def test_rates_out_of_range_are_rejected():
    with pytest.raises(ValueError, match="beta"):
        ScaledAdam(Net().parameters(), lr=0.1, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="warmup_start"):
        Eden(ScaledAdam(Net().parameters()), 10, 1, warmup_start=2.0)


def test_eden_follows_its_formula():
    optimizer = ScaledAdam(Net().parameters(), lr=0.04)
    eden = Eden(optimizer, 100, 3, warmup_batches=20, warmup_start=0.1)
    assert eden.get_last_lr() == pytest.approx([0.004])
    eden.step_batch(10)
    by_batch = ((10**2 + 100**2) / 100**2) ** -0.25
    assert eden.get_last_lr() == pytest.approx([0.04 * by_batch * 0.55])
    eden.step_epoch(6)
    eden.step_batch(300)
    expected = 0.04 * (10.0**-0.25) * (5.0**-0.25)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
