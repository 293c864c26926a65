"""Corpora: one file each, from the files as shipped to a lhotse CutSet.

A corpus is a plain function ``prepare(source_dir, audio_dir, **options) -> CutSet``:
it finds its files anywhere below ``source_dir``, stores the audio as 16 kHz flac in
``audio_dir`` and returns mono cuts, with one supervision each where there are
transcripts and none where there are not.  A new corpus is one new file and one line
in :data:`CORPORA`.
"""

from icefall_kd.corpora.asterisk import prepare_asterisk
from icefall_kd.corpora.fillets import prepare_fillets
from icefall_kd.corpora.queen import prepare_queen
from icefall_kd.corpora.tuxpaint import prepare_tuxpaint

CORPORA = {
    "asterisk": prepare_asterisk,
    "queen": prepare_queen,
    "tuxpaint": prepare_tuxpaint,
    "fillets": prepare_fillets,
}
