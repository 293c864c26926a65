"""Whether a teacher's tokens are the student's."""

from typing import Optional

from icefall_kd.cache.field import FieldInfo
from icefall_kd.data.tokens import Tokenizer


def check_vocabulary(info: FieldInfo, tokenizer: Optional[Tokenizer]) -> None:
    """Refuse a field of token distributions over another vocabulary than the student's.

    Equal sizes do not suffice: two BPE models of 500 pieces number different pieces.

    Args:
      info:      of a field of kind "ctc".
      tokenizer: of the student; None where it has none.
    Raises:
      ValueError: if the field says nothing of tokens, or of others; the message names
        both vocabularies.
    """
    theirs = info.fingerprint.get("vocab_sha256")
    if theirs is None:
        raise ValueError(
            f"field '{info.name}' of kind '{info.kind}' is over no vocabulary; a term "
            "over tokens wants one of kind 'ctc' or 'path'"
        )
    if tokenizer is None:
        raise ValueError(
            f"field '{info.name}' is over tokens and the student has none; give the "
            "training the teacher's bpe.model"
        )
    if theirs != tokenizer.sha256:
        raise ValueError(
            f"field '{info.name}' is over the {info.fingerprint.get('vocab_size')} "
            f"tokens of the BPE model {theirs[:12]}, the student over the "
            f"{tokenizer.vocab_size} of {tokenizer.sha256[:12]} (SHA-256); train it "
            "with the teacher's bpe.model, or take a teacher of the student's tokens"
        )
