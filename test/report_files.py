"""Write the files of decoding and training that a report reads, and parse its page."""

from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Optional

import yaml

from icefall_kd.core.config import to_dict
from icefall_kd.core.files import write_json, write_text
from icefall_kd.decoding import DecodeOptions
from icefall_kd.recognition.options import Chunking, decoding_info, result_suffix
from icefall_kd.recognition.result_files import write_results
from icefall_kd.recognition.scoring import Recognition
from icefall_kd.training.config import DataConfig, TrainConfig
from icefall_kd.training.metrics import MetricsWriter

REFS = [f"W{i} X{i} Y{i} Z{i}".split() for i in range(40)]
GREEDY = DecodeOptions("greedy_search", 4, 0.0)
CHUNKS = Chunking(16, 128)
VOID = {"meta", "input", "line", "circle", "polyline"}


def write_result(
    folder: Path,
    wrong: int,
    *,
    options: DecodeOptions = GREEDY,
    chunking: Optional[Chunking] = None,
    refs: Sequence[Sequence[str]] = REFS,
    prefix: str = "",
    set_name: str = "test",
    **more,
) -> Path:
    """Write a result in which the first ``wrong`` utterances lack their last word.

    Args:
      folder: folder of the result; the path of its checkpoint is
        ``../finetune/pretrained.pt``.
      wrong: number of utterances with one error.
      options, chunking: options of decoding.
      refs: words of each utterance.
      prefix: start of the suffix in the file names.
      set_name: name of the set.
      more: further keys of the JSON.
    Returns:
      ``folder``.
    """
    found = [
        Recognition(f"u{i}", list(ref), list(ref[:-1] if i < wrong else ref))
        for i, ref in enumerate(refs)
    ]
    facts = {
        "engine": "pytorch",
        **decoding_info(options, chunking),
        "checkpoint": str(folder.parent / "finetune/pretrained.pt"),
        "parameters": 2_890_000,
        "rtf": 0.0123,
        **more,
    }
    suffix = prefix + result_suffix(options, chunking)
    write_results(folder, set_name, suffix, found, facts)
    return folder


def write_training(
    folder: Path, losses: Sequence[float], epochs: int = 0, **config
) -> list[dict]:
    """Write the files of a training run.

    Args:
      folder: folder of the run.
      losses: loss on dev after each epoch; the loss on train is twice as high.
      epochs: planned epochs; 0: the number of losses.
      config: further options of training.
    Returns:
      the values on dev in metrics.jsonl, without the terms' parts.
    """
    folder.mkdir(parents=True)
    config = TrainConfig(str(folder), num_epochs=epochs or len(losses), **config)
    write_text(folder / "config.yaml", yaml.safe_dump(to_dict(config)))
    write_json(folder / "environment.json", {"commit": "abcdef123456"})
    writer = MetricsWriter(folder, 0, 0, tensorboard=False)
    dev = []
    for epoch, loss in enumerate(losses, 1):
        values = {"loss": loss, "ctc": loss / 2, "transducer": loss / 3}
        writer.write("train", 100 * epoch, epoch, {"loss": 2 * loss, "lr": 0.03})
        writer.write("dev", 100 * epoch, epoch, {**values, "transducer.pruned": 0.1})
        dev.append({"step": 100 * epoch, **values})
    writer.close()
    return dev


def make_data_config(*names: str) -> DataConfig:
    """Return a configuration of data with these training sets."""
    return DataConfig(train=names)


class Page(HTMLParser):
    """A parsed page.

    Attributes:
      tags: (name, attributes) of each element.
      scripts, styles: text of each script and style element.
      tables: for each table its rows, for each row its (text, attributes) cells.
      text: text outside of scripts and styles.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.tables: list[list[list[tuple]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []  # every element is closed

    def handle_starttag(self, tag: str, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in VOID:
            return
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(("", dict(attrs)))
        elif tag in ("script", "style"):
            getattr(self, f"{tag}s").append("")

    def handle_startendtag(self, tag: str, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside in ("script", "style"):
            getattr(self, f"{inside}s")[-1] += data
            return
        self.text += data
        if any(tag in ("td", "th") for tag in self._open):
            text, attrs = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (text + data, attrs)

    def rows(self, table: int) -> list[dict[str, tuple]]:
        """Return the rows of a table as {header: (text, attributes)}."""
        header, *rows = self.tables[table]
        return [dict(zip((text for text, _ in header), row)) for row in rows]
