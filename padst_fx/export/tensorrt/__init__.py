"""Export to TensorRT: through ONNX, or through Torch-TensorRT with this package's kernels."""
