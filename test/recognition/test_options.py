"""Options of decoding in the names of result files."""

from icefall_kd.decoding import DecodeOptions
from icefall_kd.recognition.options import Chunking, result_suffix


def test_suffix_has_all_decoding_options():
    beam = DecodeOptions("modified_beam_search", beam=8, blank_penalty=0.5)
    assert result_suffix(DecodeOptions(), None) == "greedy_search"
    assert result_suffix(beam, Chunking(32, 128)) == (
        "modified_beam_search-beam-8-blank-penalty-0.5-chunk-32-left-128"
    )
    assert (
        result_suffix(DecodeOptions("ctc_greedy_search"), None) == "ctc_greedy_search"
    )
    prefixes = DecodeOptions("ctc_prefix_beam_search", beam=8)
    assert result_suffix(prefixes, None) == "ctc_prefix_beam_search-beam-8"
