"""What a training run wrote to its metrics.jsonl."""

import json
from pathlib import Path


def metrics(config, kind="train"):
    """Lines of the run without what depends on the machine's speed."""
    lines = (Path(config.exp_dir) / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    return [
        {k: v for k, v in line.items() if k not in ("speed", "eta")}
        for line in lines
        if line["kind"] == kind
    ]
