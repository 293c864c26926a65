"""Export to ONNX for sherpa-onnx, and comparison of the engines with PyTorch."""
