"""Corpora: one file each, from the files as shipped to a lhotse CutSet.

A corpus is a plain function ``prepare(source_dir, audio_dir, **options) -> CutSet``:
it finds its files anywhere below ``source_dir``, stores the audio as 16 kHz flac in
``audio_dir`` and returns mono cuts, with one supervision each where there are
transcripts and none where there are not.  One whose audio is 16 kHz flac already refers
to it in place and takes no ``audio_dir``; one that has transcripts takes ``labelled``,
whether they are wanted.  A new corpus is one new file and one line in :data:`CORPORA`.

:data:`CHECKS` has functions ``check(source_dir, **options) -> str`` that say, before
anything is written, what of a corpus is there.
"""

from icefall_kd.corpora.asterisk import check_asterisk, prepare_asterisk
from icefall_kd.corpora.fillets import prepare_fillets
from icefall_kd.corpora.librispeech import prepare_librispeech
from icefall_kd.corpora.queen import prepare_queen
from icefall_kd.corpora.tuxpaint import prepare_tuxpaint

CORPORA = {
    "asterisk": prepare_asterisk,
    "librispeech": prepare_librispeech,
    "queen": prepare_queen,
    "tuxpaint": prepare_tuxpaint,
    "fillets": prepare_fillets,
}
CHECKS = {"asterisk": check_asterisk}
