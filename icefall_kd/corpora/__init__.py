"""Shared by the scripts ``egs/*/KD/local/prepare_*.py``: store audio, write manifests.

A script for a new corpus reads the files of the release, and writes cuts with
:func:`icefall_kd.corpora.manifests.write_manifest`.  If the audio is not 16 kHz flac or
wav, :func:`icefall_kd.corpora.audio.store_clips` converts it.  A labelled cut has one
supervision, an unlabelled cut has none.
"""
