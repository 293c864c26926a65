"""Updates from several batches (optim.accumulate)."""

import pytest
import ranks
import torch
from dummies import noise_cuts
from run_metrics import metrics
from training_runs import change, final

from icefall_kd.core.distributed import World
from icefall_kd.data.shar import write_shar
from icefall_kd.training import loop
from icefall_kd.training.interruptions import TrainingInterruptedError
from icefall_kd.training.run import train

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def equal(only, tmp_path):
    """Return a run of one epoch on 16 cuts of 1 s, whose batches need no padding."""
    texts = ["ONE TWO", "THREE"] * 8
    write_shar(noise_cuts(tmp_path, [1.0] * 16, texts), tmp_path / "shar/train")
    data = dict(shar_dir=str(tmp_path / "shar"), dev=None, spec_augment=False)
    return change(only("transducer", "ctc", num_epochs=1), data=data)


def test_an_update_of_several_batches_and_processes_equals_one_of_all_cuts(
    equal, tmp_path
):
    """Without dropout, also if the gradients are clipped to the limit per frame."""
    config = change(equal, optim=dict(max_grad_norm=1e-3))
    one, two = (ranks.compute_gradients(config, ALONE, n) for n in (1, 2))
    path = ranks.save_config(config, tmp_path / "config.yaml")
    arguments = (path, str(tmp_path / "four.pt"))
    with ranks.Job(ranks.run_gradients, arguments, tmp_path) as job:
        assert [job.end(rank) for rank in range(2)] == [0, 0], job.log(0)
    four = torch.load(tmp_path / "four.pt")
    assert set(one) == set(two) == set(four) and len(one) > 100
    for name, grad in one.items():
        close = 1e-3 * grad.abs().max() + 1e-6
        assert (two[name] - grad).abs().max() <= close, name
        assert (2 * four[name] - grad).abs().max() <= close, name
    norm = torch.stack([grad.norm() for grad in one.values()]).norm()
    assert norm == pytest.approx(1e-3 * 16 * 23, rel=1e-3)  # frames of 16 cuts


def test_schedules_depend_on_the_audio_alone(equal, tmp_path, monkeypatch):
    """Of updates of 1 x 4 s, 2 processes x 2 s, and 1 s x 4."""
    counts, original = [], loop.set_batch_count
    monkeypatch.setattr(
        loop,
        "set_batch_count",
        lambda module, count: (counts.append(count), original(module, count)),
    )
    for processes, seconds, accumulate in ((1, 4, 1), (2, 2, 1), (1, 1, 4)):
        config = change(
            equal,
            exp_dir=str(tmp_path / f"{processes} {seconds}"),
            data=dict(max_duration=seconds),
            optim=dict(accumulate=accumulate),
        )
        counts.clear()
        if processes == 1:
            train(config)
            expected = [4 * n / 600 for n in range(4) for _ in range(accumulate)]
            assert counts == pytest.approx(expected)
        else:
            path = ranks.save_config(config, tmp_path / "config.yaml")
            with ranks.Job(ranks.run_command, (path,), tmp_path) as job:
                assert [job.end(rank) for rank in range(2)] == [0, 0], job.log(0)
        hours = [line["hours"] for line in metrics(config)]
        assert hours == pytest.approx([4 * n / 3600 for n in range(1, 5)])


def test_a_run_stopped_in_the_last_update_of_an_epoch_resumes(
    equal, tmp_path, monkeypatch
):
    """The 6 batches of the epoch make updates of 4 and of 2 batches."""
    config = change(equal, data=dict(max_duration=3), optim=dict(accumulate=4))
    stopped = change(config, exp_dir=str(tmp_path / "stopped"))
    train(config)
    original = loop.Trainer._train_batch

    def train_batch(self, batch, is_last):
        original(self, batch, is_last)
        self.stop.number = self.state.step  # of a signal: SIGHUP in the second update

    with monkeypatch.context() as m:
        m.setattr(loop.Trainer, "_train_batch", train_batch)
        with pytest.raises(TrainingInterruptedError, match="after update 2"):
            train(stopped)
    train(stopped)
    assert metrics(stopped) == metrics(config) and len(metrics(config)) == 2
    assert metrics(stopped, "epoch") == metrics(config, "epoch")
    for name, weight in final(config)["model"].items():
        assert torch.equal(weight, final(stopped)["model"][name]), name
