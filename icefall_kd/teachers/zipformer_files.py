"""The files of a Zipformer teacher: its checkpoint and its tokens."""

from pathlib import Path
from typing import Optional

from icefall_kd.data.tokens import Tokenizer
from icefall_kd.io import Pathlike

PRETRAINED = "pretrained.pt"
BPE_MODEL = "bpe.model"


def checkpoint_path(model_dir: Pathlike) -> Path:
    """Return the checkpoint that ``model_dir`` is or holds.

    Raises:
      FileNotFoundError: if it is a folder without ``pretrained.pt``.
    """
    path = Path(model_dir)
    if not path.is_dir():
        return path
    if not (path / PRETRAINED).is_file():
        found = sorted(p.name for p in path.glob("*.pt"))
        raise FileNotFoundError(
            f"{path} holds no {PRETRAINED}; give the checkpoint itself, of those that "
            f"it holds: {found or 'none'}"
        )
    return path / PRETRAINED


def find_tokenizer(
    path: Path,
    carried: Optional[Tokenizer],
    bpe_model: Optional[Pathlike],
    vocab_size: int,
) -> Tokenizer:
    """Return what the model's tokens are: as given, as carried, or as lies beside it.

    Raises:
      ValueError: if there is no BPE model, it has another number of tokens, or the
        file that is given has other tokens than the checkpoint carries.
    """
    beside = path.with_name(BPE_MODEL)
    tokenizer = carried
    if bpe_model is not None:
        tokenizer = Tokenizer(bpe_model)
        if carried is not None and _tokens(carried) != _tokens(tokenizer):
            raise ValueError(
                f"bpe_model {bpe_model} has other tokens than {path} carries; leave "
                "the option out"
            )
    elif carried is None and beside.is_file():
        tokenizer = Tokenizer(beside)
    if tokenizer is None:
        raise ValueError(
            f"{path} carries no BPE model, without which nobody knows what its tokens "
            f"are; give the option bpe_model, or put {BPE_MODEL} beside it"
        )
    if tokenizer.vocab_size != vocab_size:
        raise ValueError(
            f"{path} has {vocab_size} tokens, its BPE model {tokenizer.vocab_size}; "
            "give the one that it was trained with"
        )
    return tokenizer


def _tokens(tokenizer: Tokenizer) -> list:
    return [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
