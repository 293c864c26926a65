"""The Zipformer: front end, encoder, streaming; fast CPU kernels in ``cpu/``."""
