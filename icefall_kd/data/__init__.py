"""From manifests to batches: text, splits, the data gate, Shar, fbank, sampling."""
