"""Read metrics.jsonl of a training run."""

import json
from pathlib import Path


def metrics(config, kind="train"):
    """Return the lines of one kind, without the values that depend on the machine."""
    lines = (Path(config.exp_dir) / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    return [
        {k: v for k, v in line.items() if k not in ("speed", "eta")}
        for line in lines
        if line["kind"] == kind
    ]
