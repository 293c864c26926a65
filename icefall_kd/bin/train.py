"""Train a student: pre-training, a baseline or distillation.

    python -m icefall_kd.bin.train --config conf/finetune.yaml --exp-dir exp/a \
        --optim.base_lr 0.03 --terms.ctc.weight 0.2

The same command resumes a stopped run; a finished run stays unchanged.  Ctrl-C (SIGINT)
and SIGTERM write a checkpoint after the current batch and exit with status 130 or 143;
a second signal stops at once.  Several processes:

    torchrun --nproc_per_node 2 -m icefall_kd.bin.train ...
"""

import logging
import sys
from collections.abc import Sequence
from typing import Optional

from icefall_kd.core.cli import exit_on_error
from icefall_kd.core.cpu import tune_cpu
from icefall_kd.core.logs import setup_logging
from icefall_kd.training.config import parse_config
from icefall_kd.training.interruptions import TrainingInterruptedError
from icefall_kd.training.run import train
from icefall_kd.training.skipped import TrainingStoppedError


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Parse the options and train."""
    setup_logging()
    with exit_on_error("train", TrainingStoppedError):
        config = parse_config(sys.argv[1:] if arguments is None else arguments)
        try:
            train(config)
        except TrainingInterruptedError as e:
            logging.warning("train: %s", e)
            raise SystemExit(e.status) from e


if __name__ == "__main__":
    tune_cpu()  # not in main(), because it changes the whole process
    main()
