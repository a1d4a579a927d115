"""Kernels: one folder each, with a reference, a plain torch version and a Triton version."""
