"""icefall_kd: distil large speech models into small Zipformer transducers.

A teacher produces Shar fields; a distillation term consumes Shar fields; nothing
else knows both.

Axis letters used in every docstring:

    N  batch              T  frames             S  samples
    U  labels             V  vocabulary         C  channels (encoder)
    D  embedding (teacher, predictor, joiner)   F  mel bins
    L  layers             R  prune range

Masks are True at padding.  Times are in seconds, rates in Hz, losses in nats.
"""

__version__ = "0.1.0"

SAMPLE_RATE = 16000  # Hz
NUM_MEL_BINS = 80
FBANK_SHIFT = 0.01  # s, between two fbank frames
SUBSAMPLING_FACTOR = 4  # fbank frames in one encoder output frame
ENCODER_SHIFT = FBANK_SHIFT * SUBSAMPLING_FACTOR  # s, 25 Hz
BLANK_ID = 0
LOG_EPS = -23.025850929940457  # ln(1e-10), pads fbank as lhotse and sherpa-onnx do
