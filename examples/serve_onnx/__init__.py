"""A sparse vision transformer, trained on digits, exported to ONNX and served over HTTP."""
