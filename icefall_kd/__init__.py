"""icefall_kd: distil large speech models into small Zipformer transducers.

Teachers write Shar fields, and the terms of a loss read them.  Neither depends on the
other.

Axis letters in all docstrings:

    N  batch              T  frames             S  samples
    U  labels             V  vocabulary         C  channels (encoder)
    D  embedding (teacher, predictor, joiner)   F  mel bins
    L  layers             R  prune range

Masks are True at padding.  Times are in seconds, rates in Hz, losses in nats.
"""

__version__ = "0.1.0"

SAMPLE_RATE = 16000  # Hz
NUM_MEL_BINS = 80
FBANK_SHIFT = 0.01  # s, between fbank frames
SUBSAMPLING_FACTOR = 4  # fbank frames for one frame of the encoder's output
ENCODER_SHIFT = FBANK_SHIFT * SUBSAMPLING_FACTOR  # s, 25 Hz
BLANK_ID = 0
LOG_EPS = -23.025850929940457  # ln(1e-10), padding of fbank in lhotse, sherpa-onnx
