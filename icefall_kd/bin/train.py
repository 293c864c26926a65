"""Train a student: pre-training, baseline and distillation alike.

    python -m icefall_kd.bin.train --config conf/finetune.yaml --exp-dir exp/a \
        --optim.base_lr 0.03 --terms.ctc.weight 0.2

Started again with the same --exp-dir it goes on where it stopped; a finished run is
left alone.  Ctrl-C (SIGINT) and SIGTERM end it after the present batch, with a
checkpoint and exit status 130 or 143; a second signal ends it at once.  Several
processes: torchrun --nproc_per_node 2 -m icefall_kd.bin.train ...
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
    tune_cpu()  # of this process as a whole, so not in main(), which others may call
    main()
