"""Terms of the training loss.

To add a term, see :mod:`icefall_kd.distill.term`.
"""

import dataclasses
import inspect
import logging
from typing import Any, Optional

from icefall_kd.distill.embedding import EmbeddingTerm
from icefall_kd.distill.essence import EssenceTerm
from icefall_kd.distill.hidden import HiddenTerm
from icefall_kd.distill.inter_ctc import InterCtcTerm
from icefall_kd.distill.lfmmi import LfmmiTerm
from icefall_kd.distill.one_best import OneBestTerm
from icefall_kd.distill.term import Term
from icefall_kd.distill.transducer import CtcTerm, TransducerTerm

TERMS: dict[str, type[Term]] = {
    "embedding": EmbeddingTerm,
    "hidden": HiddenTerm,
    "transducer": TransducerTerm,
    "ctc": CtcTerm,
    "inter_ctc": InterCtcTerm,
    "essence": EssenceTerm,
    "one_best": OneBestTerm,
    "lfmmi": LfmmiTerm,
}
for _name, _term in TERMS.items():
    if _term.name != _name:
        raise ValueError(
            f"TERMS['{_name}']: {_term.__name__}.name is '{_term.name}'. Use its key"
        )


def _summarise(term: type[Term]) -> str:
    """Return the first line of a term's docstring, for ``--help``."""
    return (inspect.getdoc(term) or term.name).splitlines()[0].split(";")[0].rstrip(".")


TermsConfig = dataclasses.make_dataclass(
    "TermsConfig",
    [(name, Optional[term.options], None) for name, term in TERMS.items()],
    frozen=True,
    namespace={
        "__doc__": "Options of the terms; null turns a term off.\n\nAttributes:\n"
        + "".join(f"  {name}: {_summarise(term)}.\n" for name, term in TERMS.items())
    },
)


def build_terms(config: Any) -> list[tuple[float, Term]]:
    """Return (weight, term) of every term with a weight above 0.

    Args:
      config: ``TermsConfig``.
    Raises:
      ValueError: if no term has a weight above 0, a weight is negative, or an option is
        invalid.
    """
    terms = []
    for name, term in TERMS.items():
        options = getattr(config, name)
        if options is None:
            continue
        if options.weight < 0:
            raise ValueError(
                f"terms.{name}.weight: {options.weight} is negative. Use 0 to turn "
                "the term off"
            )
        if options.weight == 0:
            logging.info("term %s has weight 0 and is off", name)
            continue
        terms.append((options.weight, term(options)))
    if not terms:
        raise ValueError(
            "terms: no term has a weight above 0. Set terms.<name>.weight. Available: "
            f"{', '.join(TERMS)}"
        )
    return terms
