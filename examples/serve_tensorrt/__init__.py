"""A sparse vision transformer, trained on digits, as a TensorRT engine served over HTTP."""
