"""All terms of the loss by name, and their place in the configuration."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, Optional

from icefall_kd.distill.embedding import EmbeddingTerm
from icefall_kd.distill.essence import EssenceTerm
from icefall_kd.distill.hidden import HiddenTerm
from icefall_kd.distill.inter_ctc import InterCtcTerm
from icefall_kd.distill.lfmmi import LfmmiTerm
from icefall_kd.distill.one_best import OneBestTerm
from icefall_kd.distill.term import Term
from icefall_kd.distill.transducer import CtcTerm, TransducerTerm

# A new term is its own file and one line here.
TERMS: dict[str, Any] = {
    "embedding": EmbeddingTerm,
    "hidden": HiddenTerm,
    "transducer": TransducerTerm,
    "ctc": CtcTerm,
    "inter_ctc": InterCtcTerm,
    "essence": EssenceTerm,
    "one_best": OneBestTerm,
    "lfmmi": LfmmiTerm,
}


def check_declarations(terms: Mapping[str, type]) -> None:
    """Refuse a term whose own class does not declare ``frame_targets``.

    Raises:
      TypeError: naming the term.
    """
    for name, term in terms.items():
        if not isinstance(vars(term).get("frame_targets"), bool):
            raise TypeError(
                f"term '{name}': class {term.__name__} declares no frame_targets; set "
                "it to True if the targets are frames of the audio, else to False"
            )


check_declarations(TERMS)

TermsConfig = dataclasses.make_dataclass(
    "TermsConfig",
    [(name, Optional[term.options], None) for name, term in TERMS.items()],
    frozen=True,
    namespace={
        "__doc__": "Terms of the loss; one that is null is off.\n\nAttributes:\n"
        + "".join(f"  {name}: options of that term.\n" for name in TERMS)
    },
)


def build_terms(config: Any) -> list[tuple[float, Term]]:
    """Return (weight, term) of every term that is on.

    A weight of 0 is off: nothing is computed, no head is built.

    Args:
      config: ``TermsConfig``.
    Raises:
      ValueError: if no term is on, a weight is negative, or an option is wrong.
    """
    terms = []
    for name, make in TERMS.items():
        options = getattr(config, name)
        if options is None:
            continue
        if options.weight < 0:
            raise ValueError(f"terms.{name}.weight is {options.weight}, below zero")
        if options.weight == 0:
            logging.info("term %s has weight 0 and is off", name)
            continue
        terms.append((options.weight, make(options)))
    if not terms:
        raise ValueError(f"no term is on; give one of terms.{list(TERMS)} a weight")
    return terms
