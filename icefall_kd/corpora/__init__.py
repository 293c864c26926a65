"""Shared by the scripts ``egs/*/KD/local/prepare_*.py``: store audio, write manifests.

A script for a new corpus reads the files as released, calls
:func:`icefall_kd.corpora.audio.store_clips` unless they are 16 kHz flac or wav already,
and writes cuts with :func:`icefall_kd.corpora.manifests.write_manifest`.  Labelled cuts
have one supervision, unlabelled cuts none.
"""
