"""ONNX files that sherpa-onnx runs, and the checks that they say the same as PyTorch.

onnxruntime is imported in ``ort`` alone, sherpa_onnx and kaldi_native_fbank in
``sherpa`` alone.
"""
