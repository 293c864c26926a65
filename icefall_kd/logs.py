"""Logging set-up shared by all commands."""

import logging


def setup_logging(level: int = logging.INFO) -> None:
    """Log to stderr with time, file and line, as icefall's recipes do."""
    logging.basicConfig(
        level=level,
        format="%(asctime)s %(levelname)s [%(filename)s:%(lineno)d] %(message)s",
        force=True,
    )
