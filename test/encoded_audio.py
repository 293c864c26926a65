"""Write audio files in formats that soundfile does not support."""

import av
import numpy as np


def encoded(path, codec, wave, rate=48000):
    """Encode a wave (S,) at 16 kHz with PyAV; return ``path``."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(
            stream.codec_context.format.name,
            "mono",
            rate,
            frame_size=stream.codec_context.frame_size or 1024,
        )
        frame = av.AudioFrame.from_ndarray(
            wave[None].astype(np.float32), "fltp", "mono"
        )
        frame.rate = 16000
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path
