"""The commands train and average."""

import sys

import pytest

from icefall_kd.bin import average, train


def test_a_wrong_option_is_an_error_of_one_line(capsys):
    with pytest.raises(SystemExit, match=r"^train: .*bas_lr"):
        train.main(["--exp-dir", "x", "--optim.bas_lr", "1"])


def test_help_lists_the_options_of_every_group(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = capsys.readouterr().out
    for option in ("--optim.base_lr", "--data.shar_dir", "--terms.ctc", "--exp_dir"):
        assert option in text


def test_averaging_without_checkpoints_is_an_error_of_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["average", "--exp-dir", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^average: .*no epoch-\*.pt; train first"):
        average.main()
